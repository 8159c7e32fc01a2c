//go:build linux

package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestConntrackStatsManyCPUs has more lines than the usual buffer.
func TestConntrackStatsManyCPUs(t *testing.T) {
	const cpus = 8192
	line := strings.Repeat("00000001 ", 14) + "00000002 00000003 00000004\n"
	header := strings.Repeat("other ", 14) + "insert_failed drop early_drop\n"
	fs := mount(t, map[string]string{"thread-self/net/stat/nf_conntrack": header + strings.Repeat(line, cpus)})
	got, err := fs.ConntrackStats()
	of := func(n uint32) []uint32 { return slices.Repeat([]uint32{n}, cpus) }
	if diff := cmp.Diff(ConntrackStats{of(2), of(3), of(4)}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// TestConntrackEntries reads the number of flows from the counters, or else from the sysctl.
func TestConntrackEntries(t *testing.T) {
	const counters = "thread-self/net/stat/nf_conntrack"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  int // or an error
	}{
		{"counters", map[string]string{counters: "entries  found\n0000000a  00000001\n0000000a  00000002\n"}, 10},
		{"no counters", map[string]string{
			"thread-self/net/sockstat":             "",
			"sys/net/netfilter/nf_conntrack_count": "12\n", "sys/net/netfilter/nf_conntrack_max": "99\n", "sys/net/netfilter/nf_conntrack_buckets": "99\n",
		}, 12},
		{"no connection tracking", map[string]string{"thread-self/net/sockstat": ""}, -1},
		{"empty", map[string]string{counters: ""}, -1},
		{"no CPU", map[string]string{counters: "entries  found\n"}, -1},
		{"other columns", map[string]string{counters: "found  entries\n1 2\n"}, -1},
		{"no number", map[string]string{counters: "entries  found\nmany 2\n"}, -1},
		{"too many", map[string]string{counters: "entries  found\nffffffff 2\n"}, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mount(t, tt.files).ConntrackEntries()
			if (err != nil) != (tt.want < 0) || err == nil && got != tt.want {
				t.Errorf("got %d, %v, want %d", got, err, tt.want)
			}
			if missing := tt.name == "no connection tracking"; errors.Is(err, fs.ErrNotExist) != missing {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestReadAllPages reads a file of the kernel that has a line for each object, and more than one page.
func TestReadAllPages(t *testing.T) {
	dir, err := NewFS("/proc").open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.close()
	content, err := dir.readAll("kallsyms", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	if len(content) < 64<<10 || !strings.HasSuffix(content, "\n") {
		t.Errorf("%d bytes of kallsyms", len(content))
	}
	if once, err := dir.read("kallsyms", 64<<20); err != nil || len(once) >= len(content) {
		t.Errorf("one read(2) has all %d bytes, %v: this file proves nothing", len(once), err)
	}
}

// TestKernelConntrack fills a pool of one port: the kernel drops the first packet of each further
// flow.
func TestKernelConntrack(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	fs := NewFS("/proc")
	empty, err := fs.Conntrack()
	if err != nil || empty.Entries != 0 || empty.Limit <= 0 || empty.Buckets <= 0 {
		t.Fatalf("no flows: got %+v, %v", empty, err)
	}
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(`table ip nat { chain post {
		type nat hook postrouting priority srcnat
		udp dport 53 snat to 127.0.0.1:2000
	}
	}`)
	for _, cmd := range []*exec.Cmd{exec.Command("ip", "link", "set", "lo", "up"), nft} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, out)
		}
	}
	const clients = 4
	for i := range clients {
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000 + i}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2), Port: 53})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Write([]byte{1})
		if i > 0 == (err == nil) {
			t.Errorf("packet %d: %v", i, err)
		}
	}
	if got, err := fs.Conntrack(); err != nil || got != (Conntrack{Entries: 1, Limit: empty.Limit, Buckets: empty.Buckets}) {
		t.Errorf("got %+v, %v, want 1 flow", got, err)
	}
	if n, err := fs.ConntrackEntries(); err != nil || n != 1 {
		t.Errorf("got %d, %v, want 1 flow", n, err)
	}
	got, err := fs.ConntrackStats()
	if err != nil {
		t.Fatal(err)
	}
	for counter, want := range map[*[]uint32]uint32{&got.InsertFailed: clients - 1, &got.Dropped: clients - 1, &got.EarlyDropped: 0} {
		sum := uint32(0)
		for _, n := range *counter {
			sum += n
		}
		if sum != want || len(*counter) != possibleCPUs(t) {
			t.Errorf("got %d in %d counters, want %d in %d", sum, len(*counter), want, possibleCPUs(t))
		}
	}
}

// possibleCPUs returns how many CPUs the host can have, of those that are not online too.
func possibleCPUs(t *testing.T) int {
	t.Helper()
	content, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		t.Fatal(err)
	}
	cpus := 0
	for part := range strings.SplitSeq(strings.TrimSpace(string(content)), ",") {
		var first, last int
		if n, _ := fmt.Sscanf(part, "%d-%d", &first, &last); n == 1 {
			last = first
		}
		cpus += last - first + 1
	}
	return cpus
}
