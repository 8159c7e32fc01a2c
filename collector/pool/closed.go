package pool

import (
	"math"
	"time"
)

// A closeKind says what frees the port of a connection that this host closed first.
type closeKind int

const (
	takenOver  closeKind = iota // TIME_WAIT gets old enough for connect() to take over the port
	expired                     // TIME_WAIT ends
	unanswered                  // FIN_WAIT2 ends: the peer has not closed
	closeKinds
)

// ageBins is the number of bins for the ages of closed connections, from 0 to the end of life. One
// more is for those at the end, whose ports the kernel is late to free.
const ageBins = 60

// closedPorts counts the ports of a pool that closed connections hold, by kind and age. Most pools
// have few: it keeps the bin of each, and an array for more.
type closedPorts struct {
	array *[closeKinds * (ageBins + 1)]uint16 // nil until few is full
	few   [15]uint8
	n     uint8 // elements of few in use
}

// A closedBin is the kind and the age of a closed connection. It is 0 if there is none.
type closedBin uint8

// binOf returns the bin of a connection of an age from 0 to life.
func binOf(kind closeKind, age, life time.Duration) closedBin {
	return closedBin(1 + int(kind)*(ageBins+1) + int(ageBins*float64(age)/float64(life)))
}

// add counts a connection.
func (c *closedPorts) add(b closedBin) {
	bin := int(b) - 1
	if c.array == nil {
		if int(c.n) < len(c.few) {
			c.few[c.n] = uint8(bin)
			c.n++
			return
		}
		c.array = new([closeKinds * (ageBins + 1)]uint16)
		for _, b := range c.few {
			c.array[b]++
		}
	}
	if c.array[bin] < math.MaxUint16 {
		c.array[bin]++
	}
}

// older returns how many connections of a kind are in each bin or in a later one.
func (c *closedPorts) older(kind closeKind) (older [ageBins + 2]int) {
	first := int(kind) * (ageBins + 1)
	if c.array != nil {
		for i := range ageBins + 1 {
			older[i] = int(c.array[first+i])
		}
	}
	for _, b := range c.few[:c.n] {
		if i := int(b) - first; c.array == nil && 0 <= i && i <= ageBins {
			older[i]++
		}
	}
	for i := ageBins; i >= 0; i-- {
		older[i] += older[i+1]
	}
	return older
}
