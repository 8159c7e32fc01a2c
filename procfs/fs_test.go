//go:build linux

package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// mount returns a fake proc file system with these files.
func mount(t *testing.T, files map[string]string) *FS {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"sys/net/ipv4", "thread-self/net"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return NewFS(dir)
}

// withOthers returns one file, and valid ones of those that are read together with another.
func withOthers(name, content string) map[string]string {
	files := map[string]string{
		"thread-self/net/sockstat":                             "TCP: inuse 4 orphan 0 tw 27 alloc 7 mem 1\nUDP: inuse 2 mem 0\nUDPLITE: inuse 9\n",
		"sys/net/netfilter/nf_conntrack_count":                 "1000\n",
		"sys/net/netfilter/nf_conntrack_max":                   "1001\n",
		"sys/net/netfilter/nf_conntrack_buckets":               "1002\n",
		"sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait": "1001\n",
		"sys/net/netfilter/nf_conntrack_udp_timeout":           "1002\n",
	}
	maps.DeleteFunc(files, func(other, _ string) bool {
		return strings.HasPrefix(name, other+".") || strings.HasPrefix(name, other+"/")
	})
	files[name] = content
	return files
}

// readers are all values that the package reads, with their files.
var readers = []struct {
	file string
	read func(*FS, *Namespace) (any, error)
}{
	{"sys/net/ipv4/ip_local_port_range", func(_ *FS, ns *Namespace) (any, error) { return ns.IPLocalPortRange() }},
	{"sys/net/ipv4/ip_local_reserved_ports", func(_ *FS, ns *Namespace) (any, error) { return ns.IPLocalReservedPorts() }},
	{"sys/net/ipv4/ip_autobind_reuse", func(_ *FS, ns *Namespace) (any, error) { return ns.IPAutobindReuse() }},
	{"sys/net/ipv4/ip_unprivileged_port_start", func(_ *FS, ns *Namespace) (any, error) { return ns.IPUnprivilegedPortStart() }},
	{"sys/net/ipv4/tcp_tw_reuse", func(_ *FS, ns *Namespace) (any, error) { return ns.TCPTWReuse() }},
	{"sys/net/ipv4/tcp_tw_reuse_delay", func(_ *FS, ns *Namespace) (any, error) {
		delay, ok, err := ns.TCPTWReuseDelay()
		if !ok {
			return nil, err
		}
		return delay, err
	}},
	{"sys/net/ipv4/tcp_timestamps", func(_ *FS, ns *Namespace) (any, error) { return ns.TCPTimestamps() }},
	{"sys/net/ipv4/tcp_fin_timeout", func(_ *FS, ns *Namespace) (any, error) { return ns.TCPFinTimeout() }},
	{"sys/net/ipv4/tcp_max_tw_buckets", func(_ *FS, ns *Namespace) (any, error) { return ns.TCPMaxTWBuckets() }},
	{"self/timens_offsets", func(fs *FS, _ *Namespace) (any, error) { return fs.MonotonicOffset() }},
	{"thread-self/net/sockstat", func(fs *FS, _ *Namespace) (any, error) { return fs.Sockstat() }},
	{"thread-self/net/sockstat6", func(fs *FS, _ *Namespace) (any, error) { return fs.Sockstat() }},
	{"sys/net/netfilter/nf_conntrack_count", func(fs *FS, _ *Namespace) (any, error) { return fs.Conntrack() }},
	{"sys/net/netfilter/nf_conntrack_max", func(fs *FS, _ *Namespace) (any, error) { return fs.Conntrack() }},
	{"sys/net/netfilter/nf_conntrack_buckets", func(fs *FS, _ *Namespace) (any, error) { return fs.Conntrack() }},
	{"sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", func(fs *FS, _ *Namespace) (any, error) { return fs.ConntrackTimeouts() }},
	{"sys/net/netfilter/nf_conntrack_udp_timeout", func(fs *FS, _ *Namespace) (any, error) { return fs.ConntrackTimeouts() }},
	{"thread-self/net/stat/nf_conntrack", func(fs *FS, _ *Namespace) (any, error) { return fs.ConntrackStats() }},
	{"thread-self/net/netstat", func(fs *FS, _ *Namespace) (any, error) { return fs.TimeWaitOverflows() }},
}

// open opens the namespace of a file system.
func open(t *testing.T, fs *FS) *Namespace {
	t.Helper()
	ns, err := fs.Namespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// readFrom reads one value.
func readFrom(t *testing.T, fs *FS, read func(*FS, *Namespace) (any, error)) (any, error) {
	t.Helper()
	return read(fs, open(t, fs))
}

// TestMalformed checks that the error for malformed content has the path and the content.
func TestMalformed(t *testing.T) {
	contents := map[string][]string{
		"sys/net/ipv4/ip_local_port_range": {
			"", "\n", "32768", "32768 60999 1", "a b", "-1 60999", "32768 65536", "60999 32768", "32768.0 60999", "0x8000 60999",
		},
		"sys/net/ipv4/ip_local_reserved_ports": {
			",", "1,", "1,,2", "a", "1-", "-1", "2-1", "1-2-3", "65536", "1 2", "1\n2", "1-65536",
		},
		"sys/net/ipv4/ip_autobind_reuse":                       {"", "on", "0 1"},
		"sys/net/ipv4/ip_unprivileged_port_start":              {"", "a", "-1", "65536"},
		"sys/net/ipv4/tcp_tw_reuse":                            {"", "a", "1 2", "4294967296", "1e3"},
		"sys/net/ipv4/tcp_tw_reuse_delay":                      {"", "a", "99999999999999999999"},
		"sys/net/ipv4/tcp_timestamps":                          {"", "yes"},
		"sys/net/ipv4/tcp_fin_timeout":                         {"", "60s"},
		"sys/net/ipv4/tcp_max_tw_buckets":                      {"", "many"},
		"self/timens_offsets":                                  {"", "boottime 0 0\n", "monotonic 0\n", "monotonic x 0\n", "monotonic 0 x\n", "monotonic 99999999999 0\n"},
		"sys/net/netfilter/nf_conntrack_count":                 {"", "a", "1 2", "4294967296"},
		"sys/net/netfilter/nf_conntrack_max":                   {"", "unlimited"},
		"sys/net/netfilter/nf_conntrack_buckets":               {"", "0x400"},
		"sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait": {"", "120s"},
		"sys/net/netfilter/nf_conntrack_udp_timeout":           {"", "30 0"},
		"thread-self/net/stat/nf_conntrack": {
			"", "insert_failed drop early_drop", "insert_failed drop early_drop\n", "insert_failed drop\n0 0\n", "drop early_drop insert\n0 0 0\n",
			"insert_failed drop early_drop\n0 0\n", "insert_failed drop early_drop\n0 0 0 0\n", "insert_failed drop early_drop\n0 0 0\n\n",
			"insert_failed drop early_drop\n0 0x1 0\n", "insert_failed drop early_drop\n0 -1 0\n", "insert_failed drop early_drop\n0 100000000 0\n",
			"insert_failed drop drop\n1 1 1\n", "insert_failed drop early_drop\n0 0 0\n0 0 g\n",
		},
		"thread-self/net/sockstat6": {"", "TCP6:", "TCP6: inuse x", "TCP: inuse 5", "TCP6: inuse 1\nUDPLITE6: inuse 1", "TCP6: inuse 1\nUDP6: inuse x", "UDP6: inuse 1"},
		"thread-self/net/sockstat": {
			"", "TCP: tw 3", "TCP: inuse x tw 3", "TCP:", "TCP: inuse 4 orphan 0", "TCP: inuse 4 tw", "TCP: tw x", "UDP: tw 3", "sockets: used 9\n",
			"TCP6: inuse 4 tw 5", "TCP: inuse 4 tw 5", "TCP: inuse 4 tw 5\nUDP: mem 0", "TCP: inuse 4 tw 5\nUDP: inuse x", "TCP: inuse 4 tw 5\nUDPLITE: inuse 1",
		},
		"thread-self/net/netstat": {
			"", "TcpExt:", "TcpExt: TCPTimeWaitOverflow", "TcpExt: A B\nTcpExt: 1 2", "TcpExt: A TCPTimeWaitOverflow\nTcpExt: 1",
			"TcpExt: TCPTimeWaitOverflow\nTcpExt: x", "TcpExt: TCPTimeWaitOverflow\nTcpExt: -1", "IpExt: TCPTimeWaitOverflow\nIpExt: 1",
		},
	}
	for _, r := range readers {
		if len(contents[r.file]) == 0 {
			t.Errorf("%s: no malformed content to try", r.file)
		}
		for _, content := range contents[r.file] {
			t.Run(fmt.Sprintf("%s/%q", filepath.Base(r.file), content), func(t *testing.T) {
				got, err := readFrom(t, mount(t, withOthers(r.file, content)), r.read)
				if err == nil {
					t.Fatalf("got %v, want an error", got)
				}
				if !strings.Contains(err.Error(), r.file) || !strings.Contains(err.Error(), fmt.Sprintf("%q", content)) {
					t.Errorf("%q does not name file and content", err)
				}
			})
		}
	}
}

// TestUnreadable checks the errors for unreadable files. A file that older kernels do not have is
// no error.
func TestUnreadable(t *testing.T) {
	for _, r := range readers {
		t.Run(filepath.Base(r.file), func(t *testing.T) {
			got, err := readFrom(t, mount(t, withOthers(r.file+".absent", "")), r.read)
			if r.file == "sys/net/ipv4/ip_autobind_reuse" || r.file == "sys/net/ipv4/ip_unprivileged_port_start" || r.file == "sys/net/ipv4/tcp_tw_reuse_delay" || r.file == "thread-self/net/sockstat6" || r.file == "self/timens_offsets" || r.file == "sys/net/netfilter/nf_conntrack_max" {
				if err != nil {
					t.Errorf("absent: got %v, %v, want no error", got, err)
				}
			} else if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), r.file) {
				t.Errorf("absent: got %v, want %v that names the file", err, fs.ErrNotExist)
			}

			if _, err := readFrom(t, mount(t, withOthers(r.file+"/is-a-directory", "")), r.read); err == nil {
				t.Error("a directory: want an error")
			}
			// These lists are well formed even if they are truncated.
			long := "1 2" + strings.Repeat("\n", maxPortList)
			if r.file == "sys/net/ipv4/ip_local_reserved_ports" {
				long = strings.Repeat("11,", maxPortList)
			} else if r.file != "sys/net/ipv4/ip_local_port_range" {
				long = "1" + strings.Repeat("\n", maxPortList)
			}
			if got, err := readFrom(t, mount(t, withOthers(r.file, long)), r.read); err == nil {
				t.Errorf("%d bytes: got %v, want an error", len(long), got)
			} else if len(err.Error()) > 1000 {
				t.Errorf("%d bytes: the error has %d", len(long), len(err.Error()))
			}
		})
	}
}

func TestRead(t *testing.T) {
	const sockstat = "sockets: used 290\nTCP: inuse 4 orphan 0 tw 27 alloc 7 mem 1\nUDP: inuse 1 mem 0\n"
	const netstat = "TcpExt: SyncookiesSent TCPTimeWaitOverflow PAWSActive\nTcpExt: 1 18446744073709551615 3\n" +
		"IpExt: InNoRoutes InTruncatedPkts\nIpExt: 0 0\n"
	const conntrack = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n" +
		"00000068  00000001 00000000 00000000 00000001 00000b2e 00000000 0000000a 00000000 0000000f 00000010 00000001 00000000  00000000 00000000 00000000 00000002\n" +
		"00000068  00000001 00000000 00000000 00000001 00000b2e 00000000 0000000a 00000000 ffffffff ffffffff 00000002 00000000  00000000 00000000 00000000 00000002\n"
	tests := []struct {
		file, content string
		want          any
	}{
		{"sys/net/netfilter/nf_conntrack_count", "104\n", Conntrack{Entries: 104, Limit: 1001, Buckets: 1002}},
		{"sys/net/netfilter/nf_conntrack_max", "0\n", Conntrack{Entries: 1000, Buckets: 1002}},
		{"sys/net/netfilter/nf_conntrack_max.hidden", "", Conntrack{Entries: 1000, Buckets: 1002}},
		{"sys/net/netfilter/nf_conntrack_buckets", "65536\n", Conntrack{Entries: 1000, Limit: 1001, Buckets: 65536}},
		{"sys/net/netfilter/nf_conntrack_udp_timeout", "30\n", ConntrackTimeouts{1001 * time.Second, 30 * time.Second}},
		{"thread-self/net/stat/nf_conntrack", conntrack, ConntrackStats{[]uint32{15, 1<<32 - 1}, []uint32{16, 1<<32 - 1}, []uint32{1, 2}}},
		{"thread-self/net/stat/nf_conntrack", "drop early_drop future insert_failed\n1 2 x 3\n", ConntrackStats{[]uint32{3}, []uint32{1}, []uint32{2}}},
		{"sys/net/ipv4/ip_local_port_range", "32768\t60999\n", PortRange{32768, 60999}},
		{"sys/net/ipv4/ip_local_port_range", "1024 1024", PortRange{1024, 1024}},
		{"sys/net/ipv4/ip_local_reserved_ports", "\n", []PortRange(nil)},
		{"sys/net/ipv4/ip_local_reserved_ports", "", []PortRange(nil)},
		{"sys/net/ipv4/ip_local_reserved_ports", "8080,9000-9010,65535\n", []PortRange{{8080, 8080}, {9000, 9010}, {65535, 65535}}},
		{"sys/net/ipv4/ip_autobind_reuse", "0\n", false},
		{"sys/net/ipv4/ip_autobind_reuse", "1\n", true},
		{"sys/net/ipv4/ip_autobind_reuse.absent", "", false},
		{"sys/net/ipv4/ip_unprivileged_port_start", "5000\n", uint16(5000)},
		{"sys/net/ipv4/tcp_tw_reuse", "2\n", 2},
		{"sys/net/ipv4/tcp_tw_reuse_delay", "1500\n", 1500 * time.Millisecond},
		{"sys/net/ipv4/tcp_timestamps", "0\n", 0},
		{"sys/net/ipv4/tcp_fin_timeout", "60\n", time.Minute},
		{"sys/net/ipv4/tcp_fin_timeout", "-1\n", -time.Second},
		{"sys/net/ipv4/tcp_max_tw_buckets", "131072\n", 131072},
		{"self/timens_offsets", "monotonic           0         0\nboottime            7         8\n", time.Duration(0)},
		{"self/timens_offsets", "monotonic         -86400 500000000\nboottime            0         0\n", -86399500 * time.Millisecond},
		{"self/timens_offsets", "1         2 3\n7         0         0\n", 2*time.Second + 3},
		{"thread-self/net/sockstat", sockstat, Sockstat{InUse: 4, TimeWait: 27, UDP: 1, Allocated: 7}},
		{"thread-self/net/sockstat6", "TCP6: inuse 3\nUDP6: inuse 1\n", Sockstat{InUse: 7, TimeWait: 27, UDP: 3, Allocated: 7}},
		{"thread-self/net/netstat", netstat, uint64(1<<64 - 1)},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s/%q", filepath.Base(tt.file), tt.content), func(t *testing.T) {
			for _, r := range readers {
				if r.file != strings.TrimSuffix(strings.TrimSuffix(tt.file, ".hidden"), ".absent") {
					continue
				}
				got, err := readFrom(t, mount(t, withOthers(tt.file, tt.content)), r.read)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

// TestKernel checks that the values are those of the namespace, not those of the host.
func TestKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	setSysctl(t, "ipv4/ip_local_port_range", "41000 41999")
	setSysctl(t, "ipv4/ip_unprivileged_port_start", "40999")
	setSysctl(t, "ipv4/tcp_tw_reuse", "1")
	setSysctl(t, "ipv4/tcp_timestamps", "0")
	setSysctl(t, "ipv4/tcp_fin_timeout", "17")
	setSysctl(t, "ipv4/tcp_max_tw_buckets", "4711")
	setSysctl(t, "netfilter/nf_conntrack_tcp_timeout_time_wait", "12")
	setSysctl(t, "netfilter/nf_conntrack_udp_timeout", "13")
	unused := make([]uint32, possibleCPUs(t))
	want := map[string]any{
		"sys/net/ipv4/ip_local_port_range":        PortRange{41000, 41999},
		"sys/net/ipv4/tcp_tw_reuse":               1,
		"sys/net/ipv4/ip_unprivileged_port_start": uint16(40999),
		"sys/net/ipv4/tcp_timestamps":             0,
		"sys/net/ipv4/tcp_fin_timeout":            17 * time.Second,
		"sys/net/ipv4/tcp_max_tw_buckets":         4711,
		"thread-self/net/sockstat":                Sockstat{},
		"thread-self/net/netstat":                 uint64(0),

		"sys/net/netfilter/nf_conntrack_udp_timeout": ConntrackTimeouts{12 * time.Second, 13 * time.Second},
		"thread-self/net/stat/nf_conntrack":          ConntrackStats{unused, unused, unused},
	}
	if _, err := os.Stat("/proc/sys/net/ipv4/tcp_tw_reuse_delay"); err == nil {
		setSysctl(t, "ipv4/tcp_tw_reuse_delay", "250")
		want["sys/net/ipv4/tcp_tw_reuse_delay"] = 250 * time.Millisecond
	}
	if _, err := os.Stat("/proc/sys/net/ipv4/ip_autobind_reuse"); err == nil {
		setSysctl(t, "ipv4/ip_autobind_reuse", "1")
		want["sys/net/ipv4/ip_autobind_reuse"] = true
	}
	for _, r := range readers {
		got, err := readFrom(t, NewFS("/proc"), r.read)
		if err != nil {
			t.Error(err)
		}
		if s, ok := got.(Sockstat); ok {
			s.Allocated = 0 // there may be some in other namespaces
			got = s
		}
		if want, ok := want[r.file]; ok {
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", r.file, diff)
			}
		}
	}
}

// TestHasServiceProxy finds the signs of service proxies, each alone.
func TestHasServiceProxy(t *testing.T) {
	for file, want := range map[string]struct{ ipvs, cilium bool }{
		"sys/net/ipv4/vs/conn_reuse_mode": {ipvs: true}, "sys/net/ipv4/conf/kube-ipvs0/forwarding": {ipvs: true},
		"sys/net/ipv4/conf/cilium_host/forwarding": {cilium: true}, "sys/net/ipv4/conf/eth0/forwarding": {},
	} {
		ns := open(t, mount(t, map[string]string{file: "1\n"}))
		if ipvs, cilium := ns.HasIPVS(), ns.HasCilium(); ipvs != want.ipvs || cilium != want.cilium {
			t.Errorf("%s: IPVS %v, Cilium %v", file, ipvs, cilium)
		}
	}
}

// TestKernelMonotonicOffset reads the offset of a time namespace.
func TestKernelMonotonicOffset(t *testing.T) {
	if _, err := os.Stat("/proc/self/timens_offsets"); err != nil {
		t.Skip("the kernel lacks time namespaces, it needs Linux 5.6")
	}
	const env = "PROCFS_TEST_TIME_NAMESPACE"
	if os.Getenv(env) != "" {
		offset, err := NewFS("/proc").MonotonicOffset()
		if err != nil || offset != 5000*time.Second {
			t.Errorf("got %v, %v, want 5000 s", offset, err)
		}
		return
	}
	out, err := exec.Command("unshare", "--user", "--map-root-user", "--time", "--monotonic=5000", "--fork",
		"env", env+"=1", os.Args[0], "-test.run=^TestKernelMonotonicOffset$", "-test.v").CombinedOutput()
	if strings.Contains(string(out), "Operation not permitted") && os.Getenv("CI") == "" {
		t.Skip("the kernel forbids user namespaces")
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestKernelMonotonicOffset") {
		t.Errorf("in a time namespace: %v\n%s", err, out)
	}
}

// TestKernelReservedPorts reads lists that are longer than the first read of os.ReadFile.
func TestKernelReservedPorts(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, step := range []int{50, 2} { // about 7 KiB, and the longest list
		var list []string
		var want []PortRange
		for port := 1; port < 65536; port += step {
			list = append(list, fmt.Sprint(port))
			want = append(want, PortRange{uint16(port), uint16(port)})
		}
		content := strings.Join(list, ",")
		if len(content) < 4096 {
			t.Fatalf("%d bytes prove nothing", len(content))
		}
		setSysctl(t, "ipv4/ip_local_reserved_ports", content)

		got, err := open(t, NewFS("/proc")).IPLocalReservedPorts()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// FuzzParse parses any content with all parsers.
func FuzzParse(f *testing.F) {
	f.Add("32768\t60999\n")
	f.Add("8080,9000-9010\n")
	f.Add("TCP: inuse 4 orphan 0 tw 27\n")
	f.Add("entries insert_failed drop early_drop\n0000000a 00000001 00000002 00000003\n")
	f.Add("TcpExt: TCPTimeWaitOverflow\nTcpExt: 5\n")
	f.Add("monotonic         -1 500000000\nboottime           0         0\n")
	f.Fuzz(func(t *testing.T, content string) {
		parseMonotonicOffset(content)
		if r, ok := parseLocalPortRange(content); ok && r.High < r.Low {
			t.Errorf("range %v", r)
		}
		if ranges, ok := parseReservedPorts(content); ok {
			for _, r := range ranges {
				if r.High < r.Low {
					t.Errorf("reserved %v", r)
				}
			}
		}
		parseSockstat(content, "TCP:", "tw")
		if s, ok := parseConntrackStats(content); len(s.InsertFailed) != len(s.Dropped) || len(s.Dropped) != len(s.EarlyDropped) || ok != (len(s.Dropped) > 0) {
			t.Errorf("conntrack %+v", s)
		}
		if n, ok := parseConntrackEntries(content); ok && n < 0 {
			t.Errorf("%d flows", n)
		}
		parseNetstat(content, "TcpExt:", "TCPTimeWaitOverflow")
	})
}
