package pool

// blocks is a list that does not move when it grows.
type blocks[T any] struct {
	full [][]T
	last []T
	n    int
}

const blockSize = 1024

// add adds an item.
func (b *blocks[T]) add(item T) {
	if len(b.last) == blockSize {
		b.full, b.last = append(b.full, b.last), nil
	}
	b.last = append(b.last, item)
	b.n++
}

// at returns item i, valid until the next add.
func (b *blocks[T]) at(i int) *T {
	if block := i / blockSize; block < len(b.full) {
		return &b.full[block][i%blockSize]
	}
	return &b.last[i%blockSize]
}
