package portset

// A Kept list keeps its memory when it is cleared.
type Kept interface {
	Clear() // remove all items
	Trim()  // give back memory that was not needed since the last calls; the list must be clear
}

// Blocks is a list whose items do not move when it grows. It keeps its memory when it is cleared.
type Blocks[T any] struct {
	blocks [][]T // all of blockSize
	n      int
	need   need
}

const blockSize = 256

// Len returns the number of items.
func (b *Blocks[T]) Len() int { return b.n }

// Add adds an item and returns its place.
func (b *Blocks[T]) Add(item T) *T {
	if b.n == len(b.blocks)*blockSize {
		b.blocks = append(b.blocks, make([]T, blockSize))
	}
	at := b.At(b.n)
	*at = item
	b.n++
	return at
}

// At returns item i.
func (b *Blocks[T]) At(i int) *T { return &b.blocks[uint(i)/blockSize][uint(i)%blockSize] }

// Clear removes all items.
func (b *Blocks[T]) Clear() {
	for i := 0; i < b.n; i += blockSize {
		clear(b.blocks[i/blockSize])
	}
	b.need.add(b.n)
	b.n = 0
}

// Trim gives back memory that was not needed since the last calls. The list must be clear.
func (b *Blocks[T]) Trim() {
	most := (b.need.trim() + blockSize - 1) / blockSize
	if most < len(b.blocks) {
		clear(b.blocks[most:])
		b.blocks = b.blocks[:most]
	}
}

// A need is the number of items for which a list keeps memory: what was needed lately, and less and less of what was
// needed before.
type need struct{ kept, now int }

// add notes that so many items were needed.
func (n *need) add(items int) { n.now = max(n.now, items) }

// trim returns the need, and begins anew.
func (n *need) trim() int {
	n.kept = max(n.now, n.kept-n.kept/8-1)
	n.now = 0
	return n.kept
}
