//go:build linux

package scan

import (
	"errors"
	"fmt"
	"os"
	"testing"
)

func TestCutShort(t *testing.T) {
	late := fmt.Errorf("read: %w", os.ErrDeadlineExceeded)
	for name, set := range map[string]func(*Snapshot, error){
		"TCP":                  func(s *Snapshot, err error) { s.Namespaces[1].TCP.Result = failure(err) },
		"details of TCP":       func(s *Snapshot, err error) { s.Namespaces[1].TCP.CutShort = errors.Is(err, os.ErrDeadlineExceeded) },
		"timestamps":           func(s *Snapshot, err error) { s.Namespaces[1].TCP.TimestampsErr = err },
		"UDP":                  func(s *Snapshot, err error) { s.Namespaces[0].UDP.Result = failure(err) },
		"source NAT":           func(s *Snapshot, err error) { s.Namespaces[0].NAT.Result = failure(err) },
		"control groups":       func(s *Snapshot, err error) { s.CgroupsErr = err },
		"connect failures":     func(s *Snapshot, err error) { s.Trace = &Trace{Err: err} },
		"their control groups": func(s *Snapshot, err error) { s.Trace = &Trace{CgroupsErr: err} },
	} {
		for _, err := range []error{late, errors.New("no permission"), errLater, nil} {
			s := Snapshot{Namespaces: make([]Namespace, 2)}
			set(&s, err)
			if got := s.CutShort(); got != errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s, %v: %v", name, err, got)
			}
		}
	}
}
