package advice

import (
	"fmt"
	"strconv"
)

// Tracking returns advice about the flows of connection tracking and their limit. It returns nil if these are
// calm, see ReachedConntrack. Outlook.Ports is how many flows there can be.
func Tracking(entries, limit int) *Advice {
	if limit == 0 || ReachedConntrack(float64(entries)/float64(limit)).Level() == Calm {
		return nil
	}
	command, undo := commands(change{name: "net.netfilter.nf_conntrack_max", before: strconv.Itoa(limit), then: strconv.Itoa(2 * limit)})
	return &Advice{
		Diagnosis: fmt.Sprintf("Connection tracking has %d flows, of %d at most. At the limit, the kernel drops the packets of new connections, whatever their destination.", entries, limit),
		Cures: []Cure{{
			Title:     "Raise the limit of connection tracking",
			Sentence:  "Each flow takes a few hundred bytes of kernel memory. The limit is that of the host, for each of its network namespaces.",
			Now:       Outlook{Ports: limit},
			Then:      Outlook{Ports: 2 * limit},
			Command:   command,
			Undo:      undo,
			Condition: "Raise nf_conntrack_buckets by the same factor.",
		}},
	}
}
