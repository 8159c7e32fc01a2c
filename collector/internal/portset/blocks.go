package portset

// Blocks is a list whose items do not move when it grows.
type Blocks[T any] struct {
	blocks [][]T // all of blockSize
	n      int
}

const blockSize = 256

// Len returns the number of items.
func (b *Blocks[T]) Len() int { return b.n }

// Add adds an item.
func (b *Blocks[T]) Add(item T) {
	i := b.n % blockSize
	if i == 0 {
		b.blocks = append(b.blocks, make([]T, blockSize))
	}
	b.blocks[b.n/blockSize][i] = item
	b.n++
}

// At returns item i.
func (b *Blocks[T]) At(i int) *T { return &b.blocks[uint(i)/blockSize][uint(i)%blockSize] }
