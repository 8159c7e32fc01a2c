package portset

import (
	"cmp"
	"slices"
	"testing"
)

// TestCountsMany checks that thousands of keys take little memory, and that those beyond count as nobody's.
func TestCountsMany(t *testing.T) {
	var c Counts[int]
	for range 2 {
		c.Add(0) // nobody
		for key := 20000; key > 0; key-- {
			c.Add(key)
		}
	}
	c.Add(19999)
	n := 0
	for range c.Keys() {
		n++
	}
	if n != 1+maxOthers {
		t.Errorf("%d keys are counted, want %d besides the first", n, maxOthers)
	}
	want := []Count[int]{{19999, 3}, {20000 - maxOthers, 2}}
	if got := c.Largest(2, cmp.Compare[int]); !slices.Equal(got, want) {
		t.Errorf("largest: got %v, want %v", got, want)
	}
	var none Counts[int]
	none.Add(0)
	if got := none.Largest(2, cmp.Compare[int]); got != nil {
		t.Errorf("nobody: got %v", got)
	}
}
