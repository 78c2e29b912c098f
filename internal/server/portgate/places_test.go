package portgate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

// takeAll takes the places of a port until there is none for the client, and returns
// how many there were.
func takeAll(f *forward, client admission.Client, reached bool) (n int) {
	for ; n < 10_000; n++ {
		_, waiting, ok := f.take(client)
		if !ok {
			break
		}
		if reached {
			waiting()
		}
	}
	return n
}

func TestOneClientCannotTakeAllPlaces(t *testing.T) {
	first, second := admission.ClientAt(netip.MustParseAddr("192.0.2.1")), admission.ClientAt(netip.MustParseAddr("192.0.2.2"))
	g := New(Config{Log: slog.New(slog.DiscardHandler)})
	defer g.Shutdown()
	port := func() *forward {
		f := newForward(g, g.kinds[network.ForwardSSH], "vm_a", network.Forward{}, nil, nil)
		t.Cleanup(f.close)
		return f
	}
	f := port()
	if n := takeAll(f, first, true); n != defaultMaxConns/2 {
		t.Errorf("one client took %d places of a port", n)
	}
	if takeAll(f, second, true) == 0 {
		t.Error("there is none for another client")
	}

	all := 0
	for range 100 {
		all += takeAll(port(), first, true)
	}
	if all+defaultMaxConns/2 != defaultOpen.PerClient {
		t.Errorf("one client took %d places of all ports", all+defaultMaxConns/2)
	}
	if takeAll(port(), second, true) == 0 {
		t.Error("there is none for another client")
	}
}

// Guests that are woken and dialled cost more than open connections.
func TestOneClientCannotWaitForAllGuests(t *testing.T) {
	first, second := admission.ClientAt(netip.MustParseAddr("192.0.2.1")), admission.ClientAt(netip.MustParseAddr("192.0.2.2"))
	g := New(Config{Log: slog.New(slog.DiscardHandler)})
	defer g.Shutdown()
	all := 0
	for range 10 {
		f := newForward(g, g.kinds[network.ForwardSSH], "vm_a", network.Forward{}, nil, nil)
		defer f.close()
		all += takeAll(f, first, false)
		if takeAll(f, second, true) == 0 {
			t.Error("there is no place for another client")
		}
	}
	if all != waitingOf(defaultOpen).PerClient {
		t.Errorf("one client waits for guests in %d places", all)
	}
	if wide := waitingOf(admission.PlaceLimits{Total: 4096, PerClient: 2048}); wide.PerClient > wide.Total/4 {
		t.Errorf("a client that may have half of the connections waits in %+v", wide)
	}
}

func TestAPlaceToWaitIsFreeOnceTheGuestIsReached(t *testing.T) {
	target := echo(t)
	release, dialling := make(chan struct{}), make(chan struct{}, 2)
	g := New(Config{SSH: Kind{Allowed: loopback}, Log: slog.New(slog.DiscardHandler), Dial: func(ctx context.Context, a Arrival) (vm.PortConn, error) {
		dialling <- struct{}{}
		<-release
		return dialTCP(ctx, a)
	}})
	g.kinds[network.ForwardSSH].waiting = admission.NewPlaces(admission.PlaceLimits{Total: 1, PerClient: 1})
	port := openPort(t, g, target)
	first := call(t, port)
	<-dialling
	if !isClosed(call(t, port)) {
		t.Error("a second connection waits for the guest")
	}
	close(release)
	for _, dial := range []func() net.Conn{func() net.Conn { return first }, func() net.Conn { return call(t, port) }} {
		if line, err := bufio.NewReader(dial()).ReadString('\n'); err != nil || line != "hello\n" {
			t.Errorf("got %q, %v", line, err)
		}
	}
}

func TestRefusedConnectionsFillNoLog(t *testing.T) {
	const refusals = 200
	var log bytes.Buffer
	failed := errors.New("the guest is away")
	for name, cfg := range map[string]Config{
		"not allowed": {},
		"no answer":   {SSH: Kind{Allowed: loopback}, Wake: func(context.Context, Arrival) error { return failed }},
	} {
		t.Run(name, func(t *testing.T) {
			log.Reset()
			cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
			g := New(cfg)
			port := openPort(t, g, netip.MustParseAddrPort("127.0.0.1:1"))
			for range refusals {
				if _, err := io.ReadAll(call(t, port)); err != nil {
					t.Fatal(err)
				}
			}
			g.Shutdown()
			if lines := strings.Count(log.String(), "\n"); lines > 40 || lines == 0 {
				t.Errorf("the log has %d lines", lines)
			}
			if !strings.Contains(log.String(), "more=") {
				t.Errorf("the others are not counted: %s", log.String())
			}
		})
	}
}
