package portset

// Blocks is a list that does not move when it grows.
type Blocks[T any] struct {
	full [][]T
	last []T
	n    int
}

const blockSize = 1024

// Len returns the number of items.
func (b *Blocks[T]) Len() int { return b.n }

// Add adds an item.
func (b *Blocks[T]) Add(item T) {
	if len(b.last) == blockSize {
		b.full, b.last = append(b.full, b.last), nil
	}
	b.last = append(b.last, item)
	b.n++
}

// At returns item i, valid until the next Add.
func (b *Blocks[T]) At(i int) *T {
	if block := i / blockSize; block < len(b.full) {
		return &b.full[block][i%blockSize]
	}
	return &b.last[i%blockSize]
}
