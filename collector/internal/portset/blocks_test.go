package portset

import "testing"

// TestBlocks keeps items where they are while the list grows over the ends of blocks.
func TestBlocks(t *testing.T) {
	var b Blocks[int]
	var first *int
	for i := range 2*blockSize + 1 {
		if b.Len() != i {
			t.Fatalf("%d items, want %d", b.Len(), i)
		}
		b.Add(i)
		if i == 0 {
			first = b.At(0)
		}
	}
	for i := range b.Len() {
		if got := *b.At(i); got != i {
			t.Fatalf("item %d is %d", i, got)
		}
	}
	if first != b.At(0) {
		t.Error("the first item has moved")
	}
}
