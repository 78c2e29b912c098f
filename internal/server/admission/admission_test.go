package admission

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func at(ip string) Client { return ClientAt(netip.MustParseAddr(ip)) }

func TestClients(t *testing.T) {
	for _, same := range [][2]string{
		{"192.0.2.1", "::ffff:192.0.2.1"}, {"2001:db8::1", "2001:db8::ffff:1"}, {"127.0.0.1", "::1"}, {"127.0.0.1", "127.9.9.9"}, {"127.0.0.1", "::ffff:127.0.0.1"},
	} {
		if at(same[0]) != at(same[1]) {
			t.Errorf("%s and %s are two clients", same[0], same[1])
		}
	}
	for _, two := range [][2]string{{"192.0.2.1", "192.0.2.2"}, {"2001:db8::1", "2001:db8:0:1::1"}, {"192.0.2.1", "127.0.0.1"}} {
		if at(two[0]) == at(two[1]) {
			t.Errorf("%s and %s are one client", two[0], two[1])
		}
	}
	if ClientOf(&net.UnixAddr{Name: "/x"}) != Local || at("::1") != Local || at("192.0.2.1") == Local {
		t.Error("a local client is not told from others")
	}
}

// fill takes places until there is none, and returns how many there were.
func fill(p *Places, client Client) (n int) {
	for ; n < 1000; n++ {
		if _, ok := p.Take(client); !ok {
			break
		}
	}
	return n
}

func TestNoClientTakesAllPlaces(t *testing.T) {
	p := NewPlaces(PlaceLimits{Total: 80, PerClient: 20})
	if n := fill(p, at("192.0.2.1")); n != 20 {
		t.Errorf("one client took %d of 20 places", n)
	}
	remote := 20
	for i := range 10 {
		remote += fill(p, at(fmt.Sprintf("198.51.100.%d", i)))
	}
	if remote != 70 {
		t.Errorf("the network took %d places, and leaves none of 10 for the host", remote)
	}
	if n := fill(p, Local); n != 10 {
		t.Errorf("the host took %d of the 10 other places", n)
	}

	p = NewPlaces(PlaceLimits{Total: 80, PerClient: 20})
	if n := fill(p, Local); n != 70 {
		t.Errorf("the host took %d places, and leaves none of 10 for the network", n)
	}
	if n := fill(p, at("192.0.2.1")); n != 10 {
		t.Errorf("the network took %d of the 10 other places", n)
	}
}

func TestAPlaceIsFreedOnce(t *testing.T) {
	p := NewPlaces(PlaceLimits{Total: 8, PerClient: 1})
	free, ok := p.Take(at("192.0.2.1"))
	if !ok {
		t.Fatal("no place is free")
	}
	free()
	free()
	if n := fill(p, at("192.0.2.1")); n != 1 {
		t.Errorf("%d places are free", n)
	}
	if len(p.taken) != 1 || p.remote != 1 {
		t.Errorf("counts %v, %d", p.taken, p.remote)
	}
}

// fakeListener has connections that come from given addresses.
type fakeListener struct {
	net.Listener
	conns chan net.Conn
}

func (l *fakeListener) Accept() (net.Conn, error) {
	conn, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

type connFrom struct {
	net.Conn
	ip string
}

func (c connFrom) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.ip), 1))
}

func TestTheListenerRefusesWhatHasNoPlace(t *testing.T) {
	var log bytes.Buffer
	lines := NewLog(slog.New(slog.NewTextHandler(&log, nil)))
	defer lines.Close()
	inner := &fakeListener{conns: make(chan net.Conn, 3)}
	l := Limit(inner, NewPlaces(PlaceLimits{Total: 8, PerClient: 1}), "no place", lines)
	dial := func(ip string) net.Conn {
		server, client := net.Pipe()
		inner.conns <- connFrom{server, ip}
		return client
	}
	dial("192.0.2.1")
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	refused := dial("192.0.2.1")
	answer := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(refused)
		answer <- string(text)
	}()
	dial("192.0.2.2")
	if second, err := l.Accept(); err != nil || !strings.Contains(second.RemoteAddr().String(), "192.0.2.2") {
		t.Errorf("accepted %v, %v", second, err)
	}
	if got := <-answer; got != "no place" {
		t.Errorf("the client without a place reads %q", got)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	dial("192.0.2.1")
	if _, err := l.Accept(); err != nil {
		t.Error(err)
	}
	close(inner.conns)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(log.String(), "192.0.2.1") {
		t.Errorf("the log says %q", log.String())
	}
}

func TestShares(t *testing.T) {
	s := NewShares(100, 60)
	keep, short := s.Take("a", 60)
	if short != Enough {
		t.Fatal("nothing is free")
	}
	for _, c := range []struct {
		account string
		n       int64
		want    Shortage
	}{{"a", 1, OfOwn}, {"b", 61, OfOwn}, {"b", 41, OfShared}, {"b", 40, Enough}, {"c", 1, OfShared}, {"c", 0, Enough}} {
		if _, got := s.Take(c.account, c.n); got != c.want {
			t.Errorf("%d for %s: %v, want %v", c.n, c.account, got, c.want)
		}
	}
	keep(10)
	keep(30)
	if s.used != 50 || s.by["a"] != 10 {
		t.Errorf("used %d, by %v after a part is free", s.used, s.by)
	}
	keep(0)
	keep(0)
	if s.used != 40 || len(s.by) != 1 {
		t.Errorf("used %d, by %v", s.used, s.by)
	}
}

func TestTriesComeBackWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := NewTries()
		client := at("192.0.2.1")
		for range triesBurst {
			if wait := tries.Failed(client); wait != 0 {
				t.Fatalf("one of the first tries must wait %s", wait)
			}
		}
		wait := tries.Wait(client)
		if wait <= 0 || wait > triesInterval {
			t.Errorf("the next try must wait %s", wait)
		}
		if tries.Failed(client) == 0 || tries.Wait(at("192.0.2.2")) != 0 {
			t.Error("the limit is not that of the client")
		}
		<-time.After(triesInterval + time.Millisecond)
		if wait := tries.Wait(client); wait != 0 {
			t.Errorf("later it must wait %s", wait)
		}
	})
}

// A client that has used up its tries gets no new ones because others, however many,
// try keys, too; and the table stays bounded.
func TestTheTableOfTriesCannotBeFlooded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := NewTries()
		attacker := at("192.0.2.1")
		for range triesBurst {
			tries.Failed(attacker)
		}
		for i := range 2 * maxTriers {
			tries.Failed(ClientAt(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})))
		}
		if len(tries.by) > maxTriers {
			t.Errorf("the table has %d entries", len(tries.by))
		}
		if tries.Wait(attacker) == 0 {
			t.Error("the attacker has new tries")
		}
	})
}

// lockedBuffer is written to by timers.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func TestALogCountsWhatItLeavesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		l := NewLog(slog.New(slog.NewTextHandler(&log, nil)))
		for range 1000 {
			l.Refused("refused", Local)
		}
		l.Refused("something else", Local)
		if n := strings.Count(log.String(), "\n"); n != linesPerWindow+1 {
			t.Errorf("there are %d lines", n)
		}
		<-time.After(logWindow + time.Second)
		synctest.Wait()
		if want := fmt.Sprintf("more=%d", 1000-linesPerWindow); strings.Count(log.String(), "more=") != 1 || !strings.Contains(log.String(), want) {
			t.Errorf("%s is not in the log: %s", want, log.String())
		}
		l.Refused("refused", Local)
		if n := strings.Count(log.String(), "\n"); n != linesPerWindow+3 {
			t.Errorf("in the next minute there are %d lines", n)
		}
		for range 100 {
			l.Refused("refused", Local)
		}
		l.Close()
		if strings.Count(log.String(), "more=") != 2 {
			t.Error("the end leaves lines uncounted")
		}
	})
}
