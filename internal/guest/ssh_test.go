package guest_test

import (
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/guest"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

const hostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGOh/lQHKqJ3rW4wnkYzWmhZ2vHAKRo1bMYUhGzZZZZ"

// Each session tells the agent whose certificates its guest accepts, also an agent that
// cannot have it accept any.
func TestGuestsTrustTheAuthorityForTheirVM(t *testing.T) {
	a := newFakeAgent()
	reports := make(chan *vm.GuestReport, 8)
	g := guest.New(slog.New(slog.DiscardHandler), hostKey).Connect("vm_1", a.dial, func(r *vm.GuestReport) { reports <- r })
	t.Cleanup(func() { _ = g.Close() })
	for _, refuse := range []error{nil, errors.New("its file system is read-only")} {
		a.refuse = refuse
		cut := a.answer(t)
		if got := <-a.trusts; got != (wire.SSHTrust{Authority: hostKey, Principal: "vm_1"}) {
			t.Errorf("it trusts %+v", got)
		}
		a.states <- state("done")
		<-reports
		cut()
		<-reports // of the loss
	}
}

func TestHostKeysOfAGuestAreChecked(t *testing.T) {
	a := newFakeAgent()
	_, reports := connect(t, a.dial)
	defer a.answer(t)()
	given := state("done")
	given.SSH = wire.SSH{Certificates: true, HostKeys: []string{"", "x\x1b[31m", `command="id" ` + hostKey, hostKey + " root@a\n" + hostKey, hostKey + strings.Repeat(" ", 5000)}}
	a.states <- given
	want := vm.SSHServer{Certificates: true, HostKeys: []string{hostKey}}
	if got := (<-reports).SSH; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	for range 20 {
		given.SSH.HostKeys = append(given.SSH.HostKeys[:0:0], append(given.SSH.HostKeys, hostKey)...)
	}
	given.SSH.Certificates = false
	a.states <- given
	if got := (<-reports).SSH; len(got.HostKeys) > 8 {
		t.Errorf("%d host keys are stored", len(got.HostKeys))
	}
}
