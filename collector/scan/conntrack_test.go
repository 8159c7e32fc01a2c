//go:build linux

package scan

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"ephemeral_port_exporter/collector/netns"
)

// TestWrappingCounter gives the counters of two CPUs to a wrappingCounter, scan by scan.
func TestWrappingCounter(t *testing.T) {
	const most = math.MaxUint32
	for _, tt := range []struct {
		name string
		now  [][]uint32
		want []uint64
	}{
		{"begins at the kernel's sum", [][]uint32{{7, most}, {7, most}}, []uint64{7 + most, 7 + most}},
		{"counts on", [][]uint32{{0, 0}, {1, 2}, {5, 3}}, []uint64{0, 3, 8}},
		{"more than 32 bits together", [][]uint32{{most, most - 1}, {most, most}}, []uint64{2*most - 1, 2 * most}},
		{"one begins anew", [][]uint32{{most - 1, 10}, {3, 11}, {4, 11}}, []uint64{most + 9, most + 15, most + 16}},
		{"one begins anew at 0", [][]uint32{{most, 10}, {0, 10}}, []uint64{most + 10, most + 11}},
		{"both", [][]uint32{{most, most}, {0, 1}}, []uint64{2 * most, 2*most + 3}},
		{"again and again", [][]uint32{{most, 0}, {1 << 30, 0}, {1 << 31, 0}, {most, 0}, {1, 0}}, []uint64{most, 5 << 30, 6 << 30, 2*most + 1, 2*most + 3}},
		{"a new table", [][]uint32{{100, 5}, {0, 0}, {2, 0}}, []uint64{105, 0, 2}},
		{"a new table after one began anew", [][]uint32{{most, 500}, {0, 500}, {0, 0}, {0, 1}}, []uint64{most + 500, most + 501, 0, 1}},
		{"other CPUs", [][]uint32{{most, 5}, {0, 5}, {7, 1, 1}, {8, 1, 1}}, []uint64{most + 5, most + 6, 9, 10}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c wrappingCounter
			for i, now := range tt.now {
				if got := c.sum(now); got != tt.want[i] {
					t.Errorf("scan %d of %v: got %d, want %d", i, tt.now, got, tt.want[i])
				}
			}
		})
	}
}

// TestConntrackWraps checks that what scans tell does not fall while the kernel's counters begin anew, however
// many scans there are and in spite of one that cannot read them.
func TestConntrackWraps(t *testing.T) {
	proc := natProc(t)
	h := newFakeHost(t, proc)
	var first Conntrack
	for i, counters := range []string{
		"ffffffff fffffffe fffffffd\n7 5 6 7\n", "0 0 0\n7 5 6 7\n", "0 0 0\n7 5 6 7\n", "malformed\n", "1 2 3\n7 5 6 7\n", "1 2 3\n7 6 7 8\n",
	} {
		writeProc(t, proc, "thread-self/net/stat/nf_conntrack", "entries insert_failed drop early_drop\n7 "+counters)
		n, _ := h.scanOnce(t)
		if strings.HasPrefix(counters, "malformed") {
			if n.Conntrack.Err == nil {
				t.Error("malformed counters were read")
			}
			continue
		}
		if n.Conntrack.Err != nil {
			t.Fatal(n.Conntrack.Err)
		}
		if i == 0 {
			first = n.Conntrack
		}
		c := n.Conntrack
		got := [3]uint64{c.InsertFailed - first.InsertFailed, c.Dropped - first.Dropped, c.EarlyDropped - first.EarlyDropped}
		if want := [][3]uint64{{0, 0, 0}, {1, 2, 3}, {1, 2, 3}, {}, {2, 4, 6}, {3, 5, 7}}[i]; got != want {
			t.Errorf("scan %d: the counters rose by %v, want %v", i, got, want)
		}
	}
}

// TestConntrackWrapsNamespaces checks that the counters of each namespace are remembered for themselves. Where
// namespaces have no cookies, nothing is remembered of any.
func TestConntrackWrapsNamespaces(t *testing.T) {
	want := "a 0, b 1"
	if cookie, err := netns.Cookie(); err != nil {
		t.Fatal(err)
	} else if cookie == 0 { // before Linux 5.14
		want = "a 0, b 0"
	}
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		mountNAT(t, filepath.Join(dir, name), range64, 60)
	}
	s, _ := natNamespaces(t, dir, range64)
	scan := func() string {
		var all []string
		for _, n := range s.Scan(t.Context()).Namespaces[1:] {
			if n.Conntrack.Outcome != Collected {
				t.Fatalf("%s: %+v", n.Name, n.Conntrack.Err)
			}
			all = append(all, fmt.Sprintf("%s %d", n.Name, n.Conntrack.Dropped>>32))
		}
		return strings.Join(all, ", ")
	}
	if got := scan(); got != "a 0, b 0" {
		t.Fatalf("first scan: %s", got)
	}
	for _, k := range s.known {
		if k.label == "b" { // as if the counter of the first CPU were about to begin anew
			k.counters.dropped.last[0] = math.MaxUint32
		}
	}
	for range 2 {
		if got := scan(); got != want {
			t.Errorf("then: %s, want %s", got, want)
		}
	}
}
