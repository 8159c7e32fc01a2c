package snat

import "ephemeral_port_exporter/collector/internal/portset"

// The blocks that MAP-E (RFC 7597) and other ways to share an address give have a power of two of ports, and begin at
// a multiple of it. Ports that are taken one after the other, from any port on, begin and end so once in 64 times.
const (
	blockPorts = 8
	minBlocks  = 3 // by chance, that many do once in 64³ times
)

// fullBlocks returns the runs of taken ports that are whole blocks, if they have nearly all of the ports. It returns nil
// if the ports can lie so by chance or by a client's choice: NAT keeps the client's own port where it can, as it has
// done for kept of them. In blocks of a rule, it can keep few.
func fullBlocks(taken *portset.Map, kept int) []portset.Range {
	if 2*kept >= taken.Size() {
		return nil
	}
	var blocks []portset.Range
	ports := 0
	for run := range taken.Runs() {
		if run.Low%blockPorts == 0 && (int(run.High)+1)%blockPorts == 0 {
			blocks = append(blocks, run)
			ports += run.Size()
		}
	}
	if len(blocks) < minBlocks || 4*ports < 3*taken.Size() || !regular(blocks) {
		return nil
	}
	return blocks
}

// regular reports whether blocks have one size, and one distance if those that are not full lie between them.
func regular(blocks []portset.Range) bool {
	stride := blocks[1].Low - blocks[0].Low
	for i := range blocks[1:] {
		stride = min(stride, blocks[1+i].Low-blocks[i].Low)
	}
	for _, b := range blocks {
		if b.Size() != blocks[0].Size() || (b.Low-blocks[0].Low)%stride != 0 {
			return false
		}
	}
	return true
}
