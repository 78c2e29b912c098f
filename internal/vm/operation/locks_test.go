package operation

import (
	"context"
	"errors"
	"testing"
)

func TestLocksSerialiseAndGiveUp(t *testing.T) {
	l := newLocks()
	unlock, err := l.lock(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Fatalf("a held lock was given, or another error: %v", err)
	}
	other, err := l.lock(ctx, "b")
	if err == nil {
		other()
	}
	unlock()
	if again, err := l.lock(context.Background(), "a"); err != nil {
		t.Fatal(err)
	} else {
		again()
	}
	if len(l.by) != 0 {
		t.Errorf("%d entries are left", len(l.by))
	}
}
