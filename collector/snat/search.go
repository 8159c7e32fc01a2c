package snat

import (
	"math"
	"math/rand/v2"
	"slices"

	"ephemeral_port_exporter/collector/internal/portset"
)

// The kernel searches for a port in rounds: up to maxTries neighbours from a random one on, then half as
// many from another, down to minTries or less. At the last harderTries of each round it takes over
// reusable ports too (NF_NAT_MAX_ATTEMPTS, NF_NAT_HARDER_THRESH and nf_nat_l4proto_unique_tuple of
// net/netfilter/nf_nat_core.c). The rounds came with Linux 5.0 (commit a504b703bb1d), and to its branches 4.9, 4.14
// and 4.19 in February 2022. A kernel without them tries all ports, so that fewer searches fail. The takeover
// came with Linux 6.5 (commit 458972550287).
const (
	maxTries    = 128
	minTries    = 16
	harderTries = 32
)

// meanFailure returns the share of searches that find no port, if each range is searched as often as another. taken
// contains reusable.
func meanFailure(ranges []portset.Range, taken, reusable *portset.Map) float64 {
	sum := 0.0
	for _, r := range ranges {
		sum += searchFailure(r, taken, reusable)
	}
	return sum / float64(len(ranges))
}

// searchFailure returns the share of searches in a range that find no port.
func searchFailure(r portset.Range, taken, reusable *portset.Map) float64 {
	runs := runsOf(r, taken, reusable)
	failure := 1.0
	for tries := min(maxTries, r.Size()); ; tries /= 2 {
		sum := 0.0
		for _, run := range runs {
			sum += run.failures(tries, r.Size())
		}
		failure *= sum / float64(r.Size())
		if failure == 0 || tries >= r.Size() || tries < minTries {
			return failure
		}
	}
}

// A takenRun is a run of neighbours that are all taken: for each port, whether it is reusable. The
// lowest port of the range is a neighbour of the highest.
type takenRun []bool

// failures returns how many rounds that begin in the run fail, in a range of that size. One with reusable
// ports fails sometimes: the new connection gets such a port if its sequence number is above that of the
// old one. They are random, so that is so every second time.
func (r takenRun) failures(tries, size int) float64 {
	harder := min(harderTries, tries)
	sum, n := 0.0, 0
	for i := range min(len(r), size+tries-1) {
		if r[i] {
			n++
		}
		if i >= harder && r[i-harder] {
			n--
		}
		switch {
		case i < tries-1:
		case n == 0:
			sum++ // as below, but faster
		default:
			sum += math.Ldexp(1, -n)
		}
	}
	return sum
}

// runsOf returns the runs of a range.
func runsOf(r portset.Range, taken, reusable *portset.Map) []takenRun {
	var runs []takenRun
	first, flags := 0, make(takenRun, 0, min(taken.Size(), r.Size())) // flags has the runs one after the other
	for port := range taken.In(r) {
		if n := len(flags); n > first && !taken.Has(port-1) {
			runs, first = append(runs, flags[first:n]), n
		}
		flags = append(flags, reusable.Has(port))
	}
	if len(flags) == 0 {
		return nil
	}
	runs = append(runs, flags[first:])
	switch last := len(runs) - 1; {
	case len(flags) == r.Size(): // none is free: the run goes on behind its end
		runs[0] = slices.Concat(flags, flags[:min(maxTries, r.Size())-1])
	case last > 0 && taken.Has(r.Low) && taken.Has(r.High):
		runs[0] = slices.Concat(runs[last], runs[0])
		runs = runs[:last]
	}
	return runs
}

// ScatteredFailure returns the share of searches that fail in ranges whose ports were taken by searches that
// begin at random. It is 1 if nearly all ports are taken. That of small ranges varies much: it is a mean.
func (s Settings) ScatteredFailure(held, reusable int) float64 {
	if 100*held >= 99*s.Ports() {
		return 1
	}
	random := rand.New(rand.NewPCG(1, 2)) // the same for each call
	n := 1 + 16384/s.Ports()
	sum := 0.0
	for range n {
		taken, closed := scatter(random, s.PortRanges, held, reusable)
		sum += meanFailure(s.PortRanges, &taken, &closed)
	}
	return sum / float64(n)
}

// scatter takes so many ports by searches, some of them reusable.
func scatter(random *rand.Rand, ranges []portset.Range, held, reusable int) (taken, closed portset.Map) {
	search := func() bool {
		r := ranges[random.IntN(len(ranges))]
		size := r.Size()
		for tries := min(maxTries, size); ; tries /= 2 {
			first := random.IntN(size)
			for i := range tries {
				port := r.Low + uint16((first+i)%size)
				if taken.Has(port) {
					continue
				}
				taken.Add(port)
				if random.IntN(held) < reusable {
					closed.Add(port)
				}
				return true
			}
			if tries >= size || tries < minTries {
				return false
			}
		}
	}
	for n := 0; n < held; {
		if search() {
			n++
		}
	}
	return taken, closed
}
