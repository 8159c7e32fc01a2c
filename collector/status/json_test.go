package status

import (
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
var shared = map[reflect.Type]string{reflect.TypeFor[documentCure](): "cures[].", reflect.TypeFor[documentOwner](): "owners[]."}

// fieldsOf returns the fields of a type as reference.md has them.
func fieldsOf(typ reflect.Type, path string) (fields []string) {
	for f := range typ.Fields() {
		if f.Anonymous {
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
		if options == "omitempty" {
			description += ", optional"
		}
		nested := kind.Kind() == reflect.Struct && kind != reflect.TypeFor[time.Time]()
		if nested {
			description = "object"
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
	if full["exhaustion_seconds"] != 0. || soonFull["exhaustion_seconds"] != 40.4 || other["exhaustion_seconds"] != nil {
		t.Errorf("forecasts %v, %v, %v", full["exhaustion_seconds"], soonFull["exhaustion_seconds"], other["exhaustion_seconds"])
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
