package portgate

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vm"
)

// Each connection that was let in is told of once it has ended, with what it carried.
func TestSessionsAreToldOf(t *testing.T) {
	ended := make(chan Session, 1)
	_, port := open(t, Config{SSH: Kind{Allowed: loopback}, Ended: func(s Session) { ended <- s }}, echo(t))
	c := call(t, port)
	if _, err := c.Write([]byte("12345")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	s := <-ended
	if s.VMID != "vm_a" || s.From != netip.MustParseAddr("127.0.0.1") || s.Err != nil || s.Bytes != int64(5+len(answer)) || s.Took <= 0 {
		t.Errorf("told of %+v; the answer was %q", s, answer)
	}

	gone := errors.New("no guest")
	refuse := func(context.Context, Arrival) (vm.PortConn, error) { return nil, gone }
	_, port = open(t, Config{SSH: Kind{Allowed: loopback}, Dial: refuse, Timeout: 20 * time.Millisecond, Ended: func(s Session) { ended <- s }}, echo(t))
	call(t, port)
	if s := <-ended; !errors.Is(s.Err, gone) {
		t.Errorf("told of %+v, without a guest", s)
	}
}
