package guest_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/guest"
	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

// fakeAgent is an agent that the test controls.
type fakeAgent struct {
	conns     chan net.Conn // the agent's ends of dialled connections
	states    chan wire.Status
	shutdowns chan wire.ShutdownArgs
	clocks    chan time.Time // that the agent was told
	trusts    chan wire.SSHTrust
	bootID    atomic.Value // a string; "b" if unset
	goingDown atomic.Bool
	refuse    error
	usage     wire.Usage
	activity  wire.Activity
}

func newFakeAgent() *fakeAgent {
	return &fakeAgent{
		conns: make(chan net.Conn, 16), states: make(chan wire.Status, 64), shutdowns: make(chan wire.ShutdownArgs, 1),
		clocks: make(chan time.Time, 64), trusts: make(chan wire.SSHTrust, 64),
	}
}

func (a *fakeAgent) dial(context.Context) (net.Conn, error) {
	host, agent := net.Pipe()
	a.conns <- agent
	return host, nil
}

// answer serves the next connection until cut is called.
func (a *fakeAgent) answer(t *testing.T) (cut func()) {
	t.Helper()
	return serveNext(a.conns, a)
}

// serveNext serves the next connection with an agent until cut is called.
func serveNext(conns <-chan net.Conn, agent wire.Handler) (cut func()) {
	conn := <-conns
	done := make(chan struct{})
	go func() {
		defer close(done)
		if server, err := wire.Accept(conn); err == nil {
			_ = server.Run(context.Background(), agent)
		}
	}()
	return func() {
		_ = conn.Close()
		<-done
	}
}

func (a *fakeAgent) Hello() wire.Hello {
	boot, _ := a.bootID.Load().(string)
	return wire.Hello{Agent: "v1\x1b[31m", BootID: cmp.Or(boot, "b")}
}

func (a *fakeAgent) Status() wire.Status { return wire.Status{GoingDown: a.goingDown.Load()} }

func (a *fakeAgent) Watch(ctx context.Context, report func(wire.Status) error) error {
	for {
		select {
		case st := <-a.states:
			if err := report(st); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *fakeAgent) Shutdown(_ context.Context, args wire.ShutdownArgs) (func(), error) {
	return func() { a.shutdowns <- args }, a.refuse
}

func (a *fakeAgent) Woken(now time.Time, _ []byte) error {
	a.clocks <- now
	return a.refuse
}

func (a *fakeAgent) Trim() error { return a.refuse }

func (a *fakeAgent) Usage() (wire.Usage, error) { return a.usage, a.refuse }

func (a *fakeAgent) Activity() wire.Activity { return a.activity }

func (a *fakeAgent) Dial(context.Context, int) (wire.DialConn, error) { return nil, a.refuse }

func (a *fakeAgent) TrustSSH(trust wire.SSHTrust) error {
	a.trusts <- trust
	return a.refuse
}

func connect(t *testing.T, dial func(context.Context) (net.Conn, error)) (vm.Session, <-chan *vm.GuestReport) {
	t.Helper()
	reports := make(chan *vm.GuestReport, 64)
	g := guest.New(slog.New(slog.DiscardHandler), "").Connect("vm_1", dial, func(r *vm.GuestReport) { reports <- r })
	t.Cleanup(func() { _ = g.Close() })
	return g, reports
}

func state(cloudInit string) wire.Status {
	return wire.Status{CloudInit: wire.CloudInit{Status: cloudInit}}
}

func TestReportsContinueAcrossSessions(t *testing.T) {
	a := newFakeAgent()
	_, reports := connect(t, a.dial)
	cut := a.answer(t)
	a.states <- state("running")
	a.states <- state("running") // unchanged
	a.states <- state("done")
	var seen []string
	for range 2 {
		seen = append(seen, (<-reports).CloudInit.Status)
	}
	if !reflect.DeepEqual(seen, []string{"running", "done"}) {
		t.Errorf("got the reports %v", seen)
	}
	cut()
	if r := <-reports; r != nil {
		t.Fatalf("the loss was not reported: %+v", r)
	}
	cut = a.answer(t)
	defer cut()
	a.states <- state("done")
	if r := <-reports; r == nil || r.CloudInit.Status != "done" {
		t.Errorf("after the loss: %+v", r)
	}
}

func TestNoReportAfterClose(t *testing.T) {
	a := newFakeAgent()
	g, reports := connect(t, a.dial)
	cut := a.answer(t)
	defer cut()
	a.states <- state("done")
	<-reports
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if len(reports) > 0 {
		t.Errorf("%+v was reported after Close", <-reports)
	}
	if err := g.Shutdown(t.Context(), false, func() {}); !errs.Is(err, errs.Unavailable) {
		t.Errorf("shutdown of a closed session: %v", err)
	}
}

func TestUnreachableGuestIsDialledAgainUntilClose(t *testing.T) {
	tries := make(chan struct{}, 64)
	g, _ := connect(t, func(context.Context) (net.Conn, error) {
		tries <- struct{}{}
		return nil, errors.New("refused")
	})
	for range 3 {
		<-tries
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCloseEndsTheWaitForAnAgent(t *testing.T) {
	a := newFakeAgent()
	g, _ := connect(t, a.dial)
	conn := <-a.conns
	defer func() { _ = conn.Close() }()
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestShutdownWaitsForAnAgent(t *testing.T) {
	a := newFakeAgent()
	g, _ := connect(t, a.dial)
	answered := make(chan error, 1)
	go func() { answered <- g.Shutdown(t.Context(), true, func() {}) }()
	cut := a.answer(t)
	defer cut()
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if args := <-a.shutdowns; !args.Reboot {
		t.Error("a reboot became a power-off")
	}
}

// TestEachBootIsAskedToPowerOff reboots a guest while it is asked to power off.
func TestEachBootIsAskedToPowerOff(t *testing.T) {
	a := newFakeAgent()
	g, _ := connect(t, a.dial)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	accepted, ended := make(chan struct{}, 2), make(chan error, 1)
	go func() { ended <- g.Shutdown(ctx, false, func() { accepted <- struct{}{} }) }()
	for _, boot := range []string{"1", "2"} {
		a.bootID.Store(boot)
		cut := a.answer(t)
		<-a.shutdowns
		<-accepted
		cut()
	}
	cancel()
	if err := <-ended; !errs.Is(err, errs.Unavailable) {
		t.Errorf("it ended with %v", err)
	}
}

// TestWhatIsBegunDuringARebootIsDoneAfterIt has a boot that goes down, and one that stays.
func TestWhatIsBegunDuringARebootIsDoneAfterIt(t *testing.T) {
	a := newFakeAgent()
	g, reports := connect(t, a.dial)
	a.bootID.Store("1")
	cut := a.answer(t)
	a.states <- wire.Status{GoingDown: true}
	if r := <-reports; !r.GoingDown {
		t.Errorf("it reports %+v", r)
	}
	a.goingDown.Store(true)
	began := make(chan string, 1)
	go func() {
		boot, err := g.Up(t.Context())
		began <- fmt.Sprint(boot, err)
	}()
	select {
	case boot := <-began:
		t.Errorf("boot %s goes down, and is up", boot)
	case <-time.After(50 * time.Millisecond): // it is asked meanwhile
	}
	cut()
	a.goingDown.Store(false)
	a.bootID.Store("2")
	cut = a.answer(t)
	defer cut()
	if boot := <-began; boot != "2<nil>" {
		t.Errorf("it began in boot %s", boot)
	}
}

// TestAShutdownThatIsCancelledIsOver has a guest that stays up after all.
func TestAShutdownThatIsCancelledIsOver(t *testing.T) {
	a := newFakeAgent()
	a.goingDown.Store(true)
	g, _ := connect(t, a.dial)
	cut := a.answer(t)
	defer cut()
	up := make(chan error, 1)
	a.states <- wire.Status{GoingDown: true}
	go func() {
		_, err := g.Up(t.Context())
		up <- err
	}()
	a.goingDown.Store(false)
	a.states <- wire.Status{}
	if err := <-up; err != nil {
		t.Error(err)
	}
}

func TestErrorsOfShutdown(t *testing.T) {
	a := newFakeAgent()
	a.refuse = errors.New("no")
	g, _ := connect(t, a.dial)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.Shutdown(ctx, false, func() {}); !errs.Is(err, errs.Unavailable) {
		t.Errorf("without an agent: %v", err)
	}
	cut := a.answer(t)
	defer cut()
	if err := g.Shutdown(t.Context(), false, func() {}); !errs.Is(err, errs.Unavailable) {
		t.Errorf("with an agent that refuses: %v", err)
	}
}

func TestReportsAreMadePrintable(t *testing.T) {
	a := newFakeAgent()
	_, reports := connect(t, a.dial)
	cut := a.answer(t)
	defer cut()
	bad := wire.Status{
		Addresses: []wire.Address{{Prefix: "172.16.0.10/24"}, {Prefix: "172.16.0.10/16"}, {Prefix: "nonsense"}, {Prefix: "fe80::1%eth0/64"}},
		CloudInit: wire.CloudInit{Status: "\x1b]0;owned\a"},
	}
	for range 20 {
		bad.CloudInit.Errors = append(bad.CloudInit.Errors, strings.Repeat("ä\n\x00", 200))
		bad.CloudInit.Warnings = append(bad.CloudInit.Warnings, strings.Repeat("\x1bü", 10))
	}
	a.states <- bad
	r := <-reports
	if !reflect.DeepEqual(r.Addresses, []netip.Addr{netip.MustParseAddr("172.16.0.10")}) {
		t.Errorf("addresses %v", r.Addresses)
	}
	if r.CloudInit.Status != "error" || len(r.CloudInit.Errors) != 8 || len(r.CloudInit.Warnings) != 8 {
		t.Errorf("cloud-init %q with %d errors and %d warnings", r.CloudInit.Status, len(r.CloudInit.Errors), len(r.CloudInit.Warnings))
	}
	for _, s := range slices.Concat(r.CloudInit.Errors, r.CloudInit.Warnings, []string{r.AgentVersion}) {
		if len(s) > 512 || !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\x1b\n\a") {
			t.Errorf("not printable: %q", s)
		}
	}
}

// TestFloodOfReportsIsLimited sends reports as fast as it can.
func TestFloodOfReportsIsLimited(t *testing.T) {
	a := newFakeAgent()
	_, reports := connect(t, a.dial)
	cut := a.answer(t)
	defer cut()
	stop := make(chan struct{})
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		for i := 0; ; i++ {
			st := state("running")
			st.CloudInit.Errors = []string{strings.Repeat("x", i%100)}
			select {
			case a.states <- st:
			case <-stop:
				return
			}
		}
	}()
	<-reports
	timer := time.NewTimer(1200 * time.Millisecond)
	<-timer.C
	close(stop)
	<-flooded
	if n := len(reports); n > 30 {
		t.Errorf("%d reports were passed on in about a second", n)
	}
}
