package web

import (
	"context"
	"errors"
	"fmt"
)

// slots bound the work for answers that is done at once. Who waits for a scan, or for an answer that another request makes
// too, does no work.
type slots struct {
	all    chan struct{} // one element for each piece of work; nil for no limit
	varied chan struct{} // one for each answer that clients can vary at will: these take half of the slots, or one
}

// newSlots returns slots for n pieces of work at once; 0 for no limit.
func newSlots(n int) *slots {
	if n == 0 {
		return &slots{}
	}
	return &slots{all: make(chan struct{}, n), varied: make(chan struct{}, max(n/2, 1))}
}

// enter takes a slot, until leave is called. The error is that of ctx.
func (s *slots) enter(ctx context.Context) (leave func(), err error) { return enter(ctx, s.all) }

// enterVaried takes the right to take slots for an answer that clients can vary, until leave is called. The error is that of ctx.
func (s *slots) enterVaried(ctx context.Context) (leave func(), err error) {
	return enter(ctx, s.varied)
}

func enter(ctx context.Context, slots chan struct{}) (leave func(), err error) {
	if slots == nil {
		return func() {}, nil
	}
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// busy returns the error of a request that got no slot, or no answer of one that has one.
func (s *slots) busy() error {
	if s.all == nil {
		return errors.New("no time was left to make the answer: raise scrape_timeout in Prometheus")
	}
	return fmt.Errorf("no time was left to make the answer: --web.max-requests lets %d be made at once; try again later", cap(s.all))
}
