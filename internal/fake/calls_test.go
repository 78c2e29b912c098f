package fake

import (
	"errors"
	"testing"
)

func TestCallsFailAsOftenAsTold(t *testing.T) {
	var c Calls
	other := errors.New("other")
	c.FailNext("a")
	c.Fail("b", 2, other)
	if err := c.Begin("a"); err == nil || err.Error() != "injected: a" {
		t.Errorf("the first call of a: %v", err)
	}
	if err := c.Begin("a"); err != nil || c.Pending("a") {
		t.Errorf("the second call of a: %v", err)
	}
	for range 2 {
		if err := c.Begin("b"); !errors.Is(err, other) {
			t.Errorf("b: %v", err)
		}
	}
	if err := c.Begin("b"); err != nil {
		t.Errorf("the third call of b: %v", err)
	}
	if c.Count("a") != 2 || c.Count("b") != 3 || c.Count("c") != 0 {
		t.Errorf("counted %d, %d and %d", c.Count("a"), c.Count("b"), c.Count("c"))
	}
}

func TestAFaultCanBeWithdrawn(t *testing.T) {
	var c Calls
	c.FailNext("a")
	if !c.Pending("a") || !c.Withdraw("a") {
		t.Error("it was not pending")
	}
	if err := c.Begin("a"); err != nil || c.Withdraw("a") {
		t.Errorf("it still fails: %v", err)
	}
}

func TestBeforeIsCalledWithoutALock(t *testing.T) {
	var c Calls
	seen := 0
	c.Before("a", func() { seen += c.Count("a") })
	_, _ = c.Begin("a"), c.Begin("b")
	c.Before("a", nil)
	if err := c.Begin("a"); err != nil || seen != 1 {
		t.Errorf("it was called %d times, %v", seen, err)
	}
}

func TestNoCallsLetEverythingThrough(t *testing.T) {
	var c *Calls
	if err := c.Begin("a"); err != nil {
		t.Error(err)
	}
}
