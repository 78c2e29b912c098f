package operation

import (
	"context"
	"errors"
	"testing"
)

func TestLocksSerialiseAndGiveUp(t *testing.T) {
	l := newLocks()
	unlock, err := l.lock(context.Background(), "a", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.lock(ctx, "a", false); !errors.Is(err, context.Canceled) {
		t.Fatalf("a held lock was given, or another error: %v", err)
	}
	other, err := l.lock(ctx, "b", false)
	if err == nil {
		other()
	}
	unlock()
	if again, err := l.lock(context.Background(), "a", false); err != nil {
		t.Fatal(err)
	} else {
		again()
	}
	if len(l.by) != 0 {
		t.Errorf("%d entries are left", len(l.by))
	}
}

func TestTryLockTakesOnlyAFreeLock(t *testing.T) {
	l := newLocks()
	unlock, free := l.tryLock("a")
	if !free {
		t.Fatal("a free lock was not given")
	}
	if _, free := l.tryLock("a"); free {
		t.Error("a held lock was given")
	}
	if !l.inUse("a") {
		t.Error("it is not in use")
	}
	waiting := make(chan func())
	go func() {
		next, err := l.lock(context.Background(), "a", false)
		if err != nil {
			t.Error(err)
		}
		waiting <- next
	}()
	unlock()
	next := <-waiting
	if _, free := l.tryLock("a"); free {
		t.Error("a lock was given that a waiter has got")
	}
	next()
	if len(l.by) != 0 {
		t.Errorf("%d entries are left", len(l.by))
	}
}
