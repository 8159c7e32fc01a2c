//go:build linux

package scan

import "errors"

// errCilium says why nothing is known of the source NAT of Cilium.
var errCilium = errors.New("where Cilium masquerades with eBPF, the flows of source NAT are in its own map, which is not read, and in connection tracking there are none")

// addCilium tells that the source NAT of Cilium is not read where it runs.
func addCilium(n *Namespace) {
	if n.Cilium.Found {
		n.Cilium.Result = failure(errCilium)
	}
}
