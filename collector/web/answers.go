package web

import (
	"context"
	"sync"
)

// A shared value is made once for all requests that want it, by one of them.
type shared[T any] struct {
	turn  chan struct{} // holds an element of the one who makes the value, or reads it
	made  bool
	value T
}

func newShared[T any]() *shared[T] { return &shared[T]{turn: make(chan struct{}, 1)} }

// get returns the value, which is made if it is not yet. If making fails, or its request is given up, the next one tries.
func (s *shared[T]) get(ctx context.Context, produce func() (T, error)) (value T, err error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return value, ctx.Err()
	}
	defer func() { <-s.turn }()
	if !s.made {
		if value, err = produce(); err != nil {
			return value, err
		}
		s.value, s.made = value, true
	}
	return s.value, nil
}

// answers are made of one scan. Requests with the same key share one.
type answers[K comparable] struct {
	slots *slots

	mu   sync.Mutex
	made map[K]*sharedAnswer
	kept map[bool]int // number, of those that clients can vary at will (true) and of the others
}

// A sharedAnswer is one of answers.
type sharedAnswer struct {
	answer  *shared[*answer]
	waiting int  // requests
	kept    bool // if nobody waits for it
}

func newAnswers[K comparable](slots *slots) *answers[K] {
	return &answers[K]{slots: slots, made: map[K]*sharedAnswer{}, kept: map[bool]int{}}
}

// maxKept is how many answers of each kind are kept of a scan, for requests that are still to come. Memory is why.
const maxKept = 4

// get returns the answer to the requests with a key, within the slots. The error is that of ctx.
func (a *answers[K]) get(ctx context.Context, key K, varied bool, encode func() *answer) (*answer, error) {
	one := a.join(key)
	defer a.leave(key, one, varied)
	return one.answer.get(ctx, func() (*answer, error) {
		leave, err := a.slots.enter(ctx)
		if err != nil {
			return nil, err
		}
		defer leave()
		return encode(), nil
	})
}

func (a *answers[K]) join(key K) *sharedAnswer {
	a.mu.Lock()
	defer a.mu.Unlock()
	one, ok := a.made[key]
	if !ok {
		one = &sharedAnswer{answer: newShared[*answer]()}
		a.made[key] = one
	}
	one.waiting++
	return one
}

func (a *answers[K]) leave(key K, one *sharedAnswer, varied bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if one.waiting--; one.waiting > 0 || one.kept {
		return
	}
	if one.answer.made && a.kept[varied] < maxKept {
		one.kept = true
		a.kept[varied]++
		return
	}
	delete(a.made, key)
}
