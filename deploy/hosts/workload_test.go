//go:build docker || kubernetes

package hosts

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Containers that take ports of 198.18.0.3, beyond the gateway of the host.
var workloads = map[string]struct {
	host  bool   // in the network of the host; else masqueraded
	ports string // its portRange, if that is not the default
	hold  string
	ready string // its log then has this line
}{
	"behind":  {hold: "tcp 198.18.0.3:8080 400", ready: "400 sockets"},
	"full":    {ports: "40000 40199", hold: "tcp 198.18.0.3:8081 400", ready: "200 sockets: dial tcp 198.18.0.3:8081: connect: cannot assign requested address"},
	"hostnet": {host: true, hold: "tcp 198.18.0.3:8082 250", ready: "250 sockets"},
	"udp":     {ports: "40000 40199", hold: "udp 198.18.0.3:53 150", ready: "150 sockets"},
}

const portRange = "net.ipv4.ip_local_port_range"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		fmt.Fprintln(os.Stderr, work(os.Args[1:]))
		os.Exit(1)
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run()) // what it started ends with the host
}

// A sample is a line of the metrics: a name behind ephemeral_port_, some of its labels, and the value, or "" for any above 0.
type sample struct {
	name, labels, value string
}

// find reports whether the metrics have a sample. Labels are in the order of the alphabet.
func find(metrics string, s sample) error {
	expression := `(?m)^ephemeral_port_` + s.name + `\{`
	for label := range strings.FieldsSeq(s.labels) {
		expression += `.*\b` + regexp.QuoteMeta(label)
	}
	expression += `.*\} (\S+)$`
	found := regexp.MustCompile(expression).FindAllStringSubmatch(metrics, -1)
	if len(found) == 1 && (found[0][1] == s.value || s.value == "" && found[0][1] != "0") {
		return nil
	}
	var have []string
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "ephemeral_port_"+s.name+"{") {
			have = append(have, line)
		}
	}
	return fmt.Errorf("want one %s{%s} %s, have\n%s", s.name, s.labels, s.value, strings.Join(have, ""))
}

// netns returns the label of the network namespace of a container.
func netns(metrics, container string) string {
	if m := regexp.MustCompile(`(?m)^ephemeral_port_netns_info\{.*container_id="` + container + `".*,(netns="[^"]+")`).FindStringSubmatch(metrics); m != nil {
		return m[1]
	}
	return `netns="of no container"`
}

// samples returns what the metrics must say of the workloads with a flag.
func samples(t *testing.T, flag, metrics string) []sample {
	t.Helper()
	const to = `destination_ip="198.18.0.3" destination_port=`
	of := func(name string) string { return `container_id="` + id(t, name) + `" ` }
	all := []sample{
		{"collect_success", `netns="self"`, "1"},
		{"destination_ports", to + `"8082" netns="self" source_ip="198.18.0.2" state="established"`, "250"},
		{"destination_owner_ports", of("hostnet") + to + `"8082" netns="self"`, "250"},
	}
	switch flag {
	case "--namespaces=all":
		behind, full, udp := netns(metrics, id(t, "behind")), netns(metrics, id(t, "full")), netns(metrics, id(t, "udp"))
		return append(all,
			sample{"netns_info", `command="hosts.test" ` + of("full") + full, "1"},
			sample{"destination_ports", to + `"8080" ` + behind + ` source_ip="` + address(t, "behind") + `" state="established"`, "400"},
			sample{"destination_owner_ports", of("behind") + to + `"8080" ` + behind, "400"},
			sample{"destination_utilization_ratio", to + `"8081" ` + full, "1"},
			sample{"destination_owner_ports", of("full") + to + `"8081" ` + full, "200"},
			sample{"udp_utilization_ratio", `family="ipv4" ` + udp, "0.75"},
			sample{"udp_owner_ports", of("udp") + `family="ipv4" ` + udp, "150"},
		)
	case "--snat":
		return append(all,
			sample{"snat_collect_success", `netns="self"`, "1"},
			sample{"snat_ports", to + `"8080" netns="self" protocol="tcp" source_ip="198.18.0.2" state="established"`, "400"},
			sample{"snat_owner_ports", to + `"8080" netns="self" original_ip="` + address(t, "behind") + `"`, "400"},
		)
	case "--trace":
		return append(all, sample{"connect_failures_total", of("full") + to + `"8081" source_ip="` + address(t, "full") + `"`, ""})
	}
	return all
}

// work is what this program does outside of the tests, as the image of the containers that take ports, and beyond the gateway:
//
//	serve ADDRESS...           keeps TCP connections until their clients close them
//	hold NETWORK ADDRESS N     holds N sockets. If there is no port for one, it tries again
//	pause                      does nothing, as the first container of a pod
func work(args []string) error {
	switch args[0] {
	case "pause":
		forever()
	case "serve":
		for _, address := range args[1:] {
			l, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			go serve(l)
		}
		forever()
	}
	most, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	var held []net.Conn
	for len(held) < most {
		conn, err := net.DialTimeout(args[1], args[2], 5*time.Second)
		if err != nil {
			fmt.Println(len(held), "sockets:", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		held = append(held, conn)
	}
	fmt.Println(len(held), "sockets")
	forever()
	return nil
}

// forever does not return. Go would end a program in which all wait.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

// serve accepts connections.
func serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			continue
		}
		go func() {
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}()
	}
}
