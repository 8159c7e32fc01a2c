//go:build linux

package connectfail

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// TestOffsetOf checks members that the kernel does not have, or has in another form.
func TestOffsetOf(t *testing.T) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		size int
		path string
		err  string
	}{
		{"no such structure", 8, "net_of_nobody net_cookie", "not found"},
		{"no such member", 8, "net net_biscuit", "has no net_biscuit"},
		{"in no structure", 8, "net net_cookie counter", "in no structure"},
		{"other size", 4, "net net_cookie", "*btf.Int of 8 bytes"},
		{"structure", 4, "user_namespace owner", "*btf.Struct of 4 bytes"},
		{"number", 4, "user_namespace owner val", ""},
		{"pointer", 8, "user_namespace parent", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := strings.Fields(tt.path)
			_, err := offsetOf(spec, tt.size, path[0], path[1:]...)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}
