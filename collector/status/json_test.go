package status

import (
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ephemeral_port_exporter/collector/pool"
	"ephemeral_port_exporter/collector/scan"
)

// TestJSONFields compares the table in reference.md with the fields of the document: names, types, and
// which may be absent.
func TestJSONFields(t *testing.T) {
	b, err := os.ReadFile("../../deploy/docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `\\.([^`]*)` \\| ([a-z, ]+) \\| .+ \\|$").FindAllStringSubmatch(string(b), -1) {
		got = append(got, m[1]+" "+m[2])
	}
	want := fieldsOf(reflect.TypeFor[document](), "")
	for typ, path := range shared {
		want = append(want, fieldsOf(typ, path)...)
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("fields (-document +reference.md):\n%s", diff)
	}
}

// shared are the types that stand in reference.md once, for all places.
var shared = map[reflect.Type]string{
	reflect.TypeFor[documentCure](): "cures[].", reflect.TypeFor[documentOwner](): "owners[].", reflect.TypeFor[documentPast](): "",
}

// fieldsOf returns the fields of a type as reference.md has them.
func fieldsOf(typ reflect.Type, path string) (fields []string) {
	for f := range typ.Fields() {
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			fields = append(fields, fieldsOf(f.Type, path)...)
			continue
		}
		if f.Anonymous {
			if _, ok := shared[f.Type.Elem()]; ok {
				continue
			}
			for _, field := range fieldsOf(f.Type.Elem(), path) {
				fields = append(fields, strings.TrimSuffix(field, ", optional")+", optional")
			}
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		kind := f.Type
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		description := map[reflect.Kind]string{
			reflect.String: "string", reflect.Bool: "boolean", reflect.Float64: "number", reflect.Map: "object", reflect.Slice: "array",
			reflect.Int: "integer", reflect.Uint16: "integer", reflect.Uint64: "integer",
		}[kind.Kind()]
		if kind == reflect.TypeFor[time.Time]() {
			description = "time"
		}
		nested := kind.Kind() == reflect.Struct && kind != reflect.TypeFor[time.Time]()
		if nested {
			description = "object"
		}
		if options == "omitempty" {
			description += ", optional"
		}
		fields = append(fields, path+name+" "+description)
		if nested {
			fields = append(fields, fieldsOf(kind, path+name+".")...)
		}
		if kind.Kind() == reflect.Slice && kind.Elem().Kind() == reflect.Struct && shared[kind.Elem()] == "" {
			fields = append(fields, fieldsOf(kind.Elem(), path+name+"[].")...)
		}
	}
	return fields
}

// TestJSON checks values whose absence has a meaning.
func TestJSON(t *testing.T) {
	type answer struct {
		Level        string
		Destinations []map[string]any
		Namespaces   []map[string]any
		Failed       []map[string]any `json:"connect_failures"`
	}
	var d, failed answer
	if err := json.Unmarshal([]byte(draw(t, trouble(), View{Format: JSON})), &d); err != nil {
		t.Fatal(err)
	}
	full, soonFull, other := d.Destinations[0], d.Destinations[1], d.Destinations[2]
	if full["exhaustion_seconds"] != 0. || soonFull["exhaustion_seconds"] != 33.3 || other["exhaustion_seconds"] != nil {
		t.Errorf("forecasts %v, %v, %v", full["exhaustion_seconds"], soonFull["exhaustion_seconds"], other["exhaustion_seconds"])
	}
	if full["sure_exhaustion_seconds"] != 0. || soonFull["sure_exhaustion_seconds"] != 40.4 || other["sure_exhaustion_seconds"] != nil {
		t.Errorf("sure forecasts %v, %v, %v", full["sure_exhaustion_seconds"], soonFull["sure_exhaustion_seconds"], other["sure_exhaustion_seconds"])
	}
	if full["connect_failures"] != 120345. || other["timestamps"] != false || full["timestamps"] != nil || len(d.Failed) != 3 || d.Level != "exhausted" {
		t.Errorf("%v\n%v\n%v", full, other, d.Failed)
	}
	for _, n := range d.Namespaces {
		if _, ok := n["capacity_ports"]; ok != (n["outcome"] == "collected") || (n["error"] != nil) != (n["outcome"] == "failed") {
			t.Errorf("namespace %v", n)
		}
	}
	if err := json.Unmarshal([]byte(draw(t, failedHost(), View{Format: JSON})), &failed); err != nil {
		t.Fatal(err)
	}
	if failed.Level != "unknown" || len(failed.Destinations) != 0 || len(failed.Namespaces) != 1 || failed.Namespaces[0]["time_wait_sockets"] != nil {
		t.Errorf("failed: %+v", failed)
	}
}

// TestRequests checks that the gain of keep-alive is in requests: the ceiling of closes stays.
func TestRequests(t *testing.T) {
	for _, format := range []Format{HTML, Text} {
		text := regexp.MustCompile(`<[^>]*>|\s+`).ReplaceAllString(draw(t, trouble(), View{Format: format}), " ")
		if !regexp.MustCompile(`Keep connections alive.*? Requests/s +450 +1350 `).MatchString(text) {
			t.Errorf("%s: no requests per second", format)
		}
	}
	var d struct {
		Destinations, SNAT []struct {
			Cures []struct {
				Title     string
				Now, Then map[string]float64
			}
		}
	}
	if err := json.Unmarshal([]byte(draw(t, trouble(), View{Format: JSON})), &d); err != nil {
		t.Fatal(err)
	}
	alive, others := 0, 0
	for _, of := range slices.Concat(d.Destinations, d.SNAT) {
		for _, c := range of.Cures {
			_, requests := c.Then["requests_per_second"]
			_, ceiling := c.Then["ceiling_per_second"]
			if keep := c.Title == "Keep connections alive"; requests != keep || ceiling && keep || keep && c.Then["requests_per_second"] < 2*c.Now["requests_per_second"] {
				t.Errorf("%+v", c)
			}
			if requests {
				alive++
			}
			if ceiling {
				others++
			}
		}
	}
	if alive == 0 || others == 0 {
		t.Errorf("%d cures with requests, %d with a ceiling", alive, others)
	}
}

// TestJSONAdvice checks that JSON judges sources and connection tracking as the page does.
func TestJSONAdvice(t *testing.T) {
	s := quiet()
	n := &s.Namespaces[0]
	bind := pool.Source{Address: netip.MustParseAddr("10.0.0.77"), Ports: 25000, Bound: 24990, Capacity: 28222, Utilization: 0.885}
	connect := bind
	connect.Bound = 10
	n.TCP.Report.Sources = []pool.Source{bind, connect}
	n.Conntrack = scan.Conntrack{Result: read, Entries: 95, Limit: 100}
	type judged struct {
		Level, Diagnosis string
		Cures            []struct{ Command string }
	}
	get := func() (sources []judged, tracking judged) {
		var d struct {
			Sources    []judged
			Namespaces []struct {
				Level     string                     `json:"conntrack_level"`
				Diagnosis string                     `json:"conntrack_diagnosis"`
				Conntrack []struct{ Command string } `json:"conntrack_cures"`
			}
		}
		if err := json.Unmarshal([]byte(draw(t, s, View{Format: JSON})), &d); err != nil {
			t.Fatal(err)
		}
		return d.Sources, judged{d.Namespaces[0].Level, d.Namespaces[0].Diagnosis, d.Namespaces[0].Conntrack}
	}
	sources, tracking := get()
	if of := sources[0]; of.Level != "critical" || !strings.HasPrefix(of.Diagnosis, "Clients bind before") || len(of.Cures) < 2 {
		t.Errorf("a source whose clients bind: %+v", of)
	}
	if of := sources[1]; of.Level != "calm" || of.Diagnosis != "" || of.Cures != nil {
		t.Errorf("a source whose clients connect: %+v", of)
	}
	if tracking.Level != "critical" || tracking.Diagnosis == "" || len(tracking.Cures) != 1 || tracking.Cures[0].Command != "sysctl -w net.netfilter.nf_conntrack_max=200" {
		t.Errorf("connection tracking: %+v", tracking)
	}
	n.TCP.Report.BoundKnown, n.Conntrack.Entries = false, 89
	sources, tracking = get()
	if of := sources[0]; of.Level != "calm" || of.Cures != nil || tracking.Level != "calm" || tracking.Diagnosis != "" || tracking.Cures != nil {
		t.Errorf("what is not known, and what is calm: %+v, %+v", of, tracking)
	}
}
