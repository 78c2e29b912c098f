package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const soon = 5 * time.Second

// resolver is an upstream on a loopback address, port and all.
type resolver struct {
	address netip.AddrPort
	mu      sync.Mutex
	asked   []string // transport and name
}

// startResolver answers with count A records, over UDP only as many as fit.
func startResolver(t *testing.T, count int) *resolver {
	t.Helper()
	r := &resolver{}
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := net.Listen("tcp4", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.address = packets.LocalAddr().(*net.UDPAddr).AddrPort()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r.note(w.LocalAddr().Network() + " " + q.Question[0].Name)
		m := new(dns.Msg).SetReply(q)
		for i := range count {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 60 IN A 203.0.113.%d", q.Question[0].Name, i))
			m.Answer = append(m.Answer, rr)
		}
		if w.LocalAddr().Network() == "udp" {
			m.Truncate(512)
		}
		_ = w.WriteMsg(m)
	})
	run := &running{udp: &dns.Server{PacketConn: packets}, tcp: &dns.Server{Listener: stream}}
	if err := run.start(handler); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(run.close)
	return r
}

func (r *resolver) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, what)
}

func (r *resolver) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.asked, ", ")
}

// start starts a server that asks these resolvers. Each has a port of its own,
// which resolv.conf cannot say, so they are set directly.
func start(t *testing.T, resolvers ...string) *Server {
	t.Helper()
	return startFor(t, "127.0.0.0/8", resolvers...)
}

// startFor starts a server that answers these clients only.
func startFor(t *testing.T, clients string, resolvers ...string) *Server {
	t.Helper()
	s := New(Config{
		Address: netip.MustParseAddrPort("127.0.0.1:0"), Clients: netip.MustParsePrefix(clients),
		Log: slog.New(slog.DiscardHandler),
	})
	s.upstreams.resolvers, s.upstreams.checked = resolvers, time.Now().Add(time.Hour)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func ask(t *testing.T, s *Server, transport string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: transport, Timeout: soon}
	m, _, err := c.Exchange(q, s.Address().String())
	if err != nil {
		t.Fatalf("%s: %v", transport, err)
	}
	m.Compress = true // as it was on the wire
	return m
}

func question(kind uint16) *dns.Msg { return new(dns.Msg).SetQuestion("example.com.", kind) }

func TestForwardsOverBothTransports(t *testing.T) {
	up := startResolver(t, 1)
	s := start(t, up.address.String())
	for _, transport := range []string{"udp", "tcp"} {
		q := question(dns.TypeA)
		m := ask(t, s, transport, q)
		if m.Id != q.Id || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
			t.Errorf("%s: %v", transport, m)
		}
	}
}

func TestTruncatedAnswerIsFetchedOverTCP(t *testing.T) {
	up := startResolver(t, 100)
	s := start(t, up.address.String())
	if m := ask(t, s, "tcp", question(dns.TypeA)); len(m.Answer) != 100 || m.Truncated {
		t.Errorf("over TCP: %d answers, truncated %v", len(m.Answer), m.Truncated)
	}
	if got := up.log(); got != "udp example.com., tcp example.com." {
		t.Errorf("the resolver was asked: %s", got)
	}
	m := ask(t, s, "udp", question(dns.TypeA))
	if !m.Truncated || m.Len() > plainUDPAnswer {
		t.Errorf("over UDP: truncated %v, %d bytes", m.Truncated, m.Len())
	}
	big := question(dns.TypeA)
	big.SetEdns0(65000, false)
	if m := ask(t, s, "udp", big); !m.Truncated || m.Len() > maxUDPAnswer {
		t.Errorf("over UDP with EDNS: truncated %v, %d bytes", m.Truncated, m.Len())
	}
}

func TestTheNextResolverIsAsked(t *testing.T) {
	closed, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := closed.LocalAddr().String()
	_ = closed.Close()
	up := startResolver(t, 1)
	if m := ask(t, start(t, dead, up.address.String()), "udp", question(dns.TypeA)); len(m.Answer) != 1 {
		t.Errorf("got %v", m)
	}
	if m := ask(t, start(t, dead), "udp", question(dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("no resolver answers: %v, want SERVFAIL", m)
	}
	if m := ask(t, start(t), "udp", question(dns.TypeA)); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("no resolver: %v, want SERVFAIL", m)
	}
}

func TestRefuses(t *testing.T) {
	up := startResolver(t, 1)
	s := start(t, up.address.String())
	chaos := question(dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	notify := question(dns.TypeSOA)
	notify.Opcode = dns.OpcodeNotify
	cases := map[string]struct {
		q    *dns.Msg
		want int
	}{
		"ANY":    {question(dns.TypeANY), dns.RcodeRefused},
		"AXFR":   {question(dns.TypeAXFR), dns.RcodeRefused},
		"IXFR":   {question(dns.TypeIXFR), dns.RcodeRefused},
		"chaos":  {chaos, dns.RcodeRefused},
		"notify": {notify, dns.RcodeNotImplemented},
	}
	for name, c := range cases {
		if m := ask(t, s, "udp", c.q); m.Rcode != c.want {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[m.Rcode], dns.RcodeToString[c.want])
		}
	}
	if got := up.log(); got != "" {
		t.Errorf("the resolver was asked: %s", got)
	}
}

func TestStrangersGetNoAnswer(t *testing.T) {
	up := startResolver(t, 1)
	s := startFor(t, "172.16.0.0/24", up.address.String())
	c := &dns.Client{Net: "udp", Timeout: 200 * time.Millisecond}
	if m, _, err := c.Exchange(question(dns.TypeA), s.Address().String()); err == nil {
		t.Errorf("a stranger got %v", m)
	}
	if got := up.log(); got != "" {
		t.Errorf("the resolver was asked: %s", got)
	}
}

func TestOneGuestCannotUseUpTheLimit(t *testing.T) {
	l := newLimit(3, 2)
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	for i, step := range []struct {
		guest netip.Addr
		want  bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {c, false}} {
		if got := l.acquire(step.guest); got != step.want {
			t.Errorf("step %d: got %v, want %v", i, got, step.want)
		}
	}
	l.release(a)
	if !l.acquire(c) {
		t.Error("a place that was released is not free")
	}
	for _, guest := range []netip.Addr{a, b, c} {
		l.release(guest)
	}
	if len(l.byGuest) != 0 || l.all != 0 {
		t.Errorf("left: %v, %d", l.byGuest, l.all)
	}
}

// However fast the resolver answers, a guest cannot make hatchd ask without end.
func TestQuestionsHaveARate(t *testing.T) {
	up := startResolver(t, 1)
	s := start(t, up.address.String())
	const flood = 4 * maxBurstGuest
	began := time.Now()
	for range flood {
		s.forward(netip.MustParseAddr("127.0.0.1"), question(dns.TypeA))
	}
	most := maxBurstGuest + int(maxRateOfGuest*(time.Since(began).Seconds()+1))
	if asked := strings.Count(up.log(), "example.com."); asked < maxBurstGuest || asked > most {
		t.Errorf("the resolver was asked %d times for %d questions, want %d to %d", asked, flood, maxBurstGuest, most)
	}
	if m := s.forward(netip.MustParseAddr("127.0.0.2"), question(dns.TypeA)); m.Rcode != dns.RcodeSuccess {
		t.Errorf("another guest got %s", dns.RcodeToString[m.Rcode])
	}
}

// However many guests ask as often as they may, one that asks little is answered.
func TestManyGuestsCannotUseUpTheRate(t *testing.T) {
	r := newRates()
	guest := netip.MustParseAddr("10.1.0.0")
	for range 30 {
		guest = guest.Next()
		for asked := 0; asked < maxBurstGuest && r.allow(guest); asked++ {
		}
	}
	for i := range littleAtOnce {
		if !r.allow(netip.MustParseAddr("10.2.0.0")) {
			t.Fatalf("a guest that asks little is refused after %d questions", i)
		}
	}
}

func TestIdleGuestsRatesAreDropped(t *testing.T) {
	r := newRates()
	guest := netip.MustParseAddr("10.1.0.0")
	for range 3 * manyGuests {
		guest = guest.Next()
		r.of(guest)
	}
	if n := len(r.byGuest); n > manyGuests {
		t.Errorf("%d rates are kept, want at most %d", n, manyGuests)
	}
}

func TestTooManyTCPConnectionsAreClosed(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLimitedListener(inner, 10, 1)
	defer l.Close()
	accepted := make(chan net.Conn, 2)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	})
	first, second := dial(t, inner), dial(t, inner)
	_ = second.SetReadDeadline(time.Now().Add(soon))
	if _, err := second.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the second connection is not closed: %v", err)
	}
	_ = (<-accepted).Close()
	_ = first.Close()
	third := dial(t, inner)
	_ = third.Close()
	_ = (<-accepted).Close()
	_ = l.Close()
	accepting.Wait()
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestResolvConfIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	u := &upstreams{path: path, self: netip.MustParseAddr("172.16.0.1")}
	if _, err := u.current(); err == nil {
		t.Error("no file, and no error")
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 172.16.0.1\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\n")
	got, err := u.current()
	if err != nil || strings.Join(got, " ") != "127.0.0.53:53 [fe80::1%eth0]:53 [2001:db8::1]:53" {
		t.Fatalf("got %q, %v", got, err)
	}
	write("nameserver 9.9.9.9\n")
	u.checked = time.Now().Add(-time.Minute)
	if got, err := u.current(); err != nil || strings.Join(got, " ") != "9.9.9.9:53" {
		t.Errorf("after a change: %q, %v", got, err)
	}
}

func TestCheckAndRestart(t *testing.T) {
	s := New(Config{Address: netip.MustParseAddrPort("127.0.0.1:0"), Clients: netip.MustParsePrefix("127.0.0.0/8"), Log: slog.New(slog.DiscardHandler)})
	if s.Check() == nil {
		t.Error("Check passes before Start")
	}
	for range 2 {
		if err := s.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s.Check() == nil {
			t.Error("Check passes after Close")
		}
	}
}

// FuzzRefuse looks for questions that end the server.
func FuzzRefuse(f *testing.F) {
	seed, _ := question(dns.TypeA).Pack()
	f.Add(seed)
	f.Fuzz(func(t *testing.T, packet []byte) {
		m := new(dns.Msg)
		if m.Unpack(packet) != nil {
			return
		}
		if code := refuse(m); code != dns.RcodeSuccess {
			m = failure(m, code)
		}
		m.Truncate(maxAnswer(m))
	})
}
