package route

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
)

// While passwords of a route are checked, more than a few others of it are refused;
// those of other routes wait for their turn.
func TestPasswordsWaitInTurn(t *testing.T) {
	spec, err := Draft{Spec{Port: 80, Auth: Auth{Mode: Basic, Username: "me"}}, "correct horse"}.Decide()
	if err != nil {
		t.Fatal(err)
	}
	s := &Service{passwords: passwords{by: map[digest]struct{}{}, trying: map[string]int{}}, hashes: make(chan struct{}, 1)}
	s.hashes <- struct{}{} // another hash takes the time
	ctx, cancel := context.WithCancel(t.Context())
	shown := Credentials{Username: "me", Password: "wrong horse"}
	var waiting sync.WaitGroup
	for range maxTries {
		if !s.passwords.begin("rt_a") { // as a check does that waits
			t.Fatal("there is no place for a try")
		}
	}
	if _, err := s.passwordFits(ctx, Target{RouteID: "rt_a", Auth: spec.Auth}, shown); !errs.HasCode(err, "too_many_passwords") {
		t.Errorf("one try too many: %v", err)
	}
	outcome := make(chan error, 1)
	waiting.Go(func() {
		_, err := s.passwordFits(ctx, Target{RouteID: "rt_b", Auth: spec.Auth}, shown)
		outcome <- err
	})
	cancel()
	if err := <-outcome; !errors.Is(err, context.Canceled) {
		t.Errorf("a try of another route: %v", err)
	}
	waiting.Wait()
	for range maxTries {
		s.passwords.end("rt_a")
	}
	<-s.hashes
	if fits, err := s.passwordFits(t.Context(), Target{RouteID: "rt_a", Auth: spec.Auth}, Credentials{Username: "me", Password: "correct horse"}); err != nil || !fits {
		t.Errorf("after the others: %v, %v", fits, err)
	}
	if len(s.passwords.trying) > 0 {
		t.Errorf("still tried: %v", s.passwords.trying)
	}
}
