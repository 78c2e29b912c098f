package sender

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/webhook"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func send(t *testing.T, cfg Config, url string) (webhook.Answer, error) {
	t.Helper()
	s := New(cfg)
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return s.Send(ctx, webhook.Message{URL: url, ID: "evt_1", Timestamp: time.Unix(1700000000, 0), Signature: "v1,c2ln", Body: []byte(`{"type":"vm.created"}`)})
}

func receiver(t *testing.T, handle http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	return s
}

func TestSend(t *testing.T) {
	r := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got := strings.Join([]string{r.Method, r.URL.RequestURI(), r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), r.Header.Get("webhook-signature"), r.Header.Get("Content-Type"), r.UserAgent(), string(body)}, " ")
		if got != `POST /hook?x=1 evt_1 1700000000 v1,c2ln application/json Hatch-Webhook/1.2.3 {"type":"vm.created"}` {
			t.Errorf("got %s", got)
		}
		w.Header().Set("Retry-After", "90")
		w.WriteHeader(http.StatusAccepted)
	})
	answer, err := send(t, Config{AllowPrivate: true, Version: "1.2.3"}, r.URL+"/hook?x=1")
	if err != nil || answer != (webhook.Answer{StatusCode: 202, RetryAfter: 90 * time.Second}) {
		t.Errorf("%+v, %v", answer, err)
	}
}

// TestPrivateAddressesAreNotDialled has a receiver on loopback, by every name
// that it has.
func TestPrivateAddressesAreNotDialled(t *testing.T) {
	var calls atomic.Int32
	r := receiver(t, func(http.ResponseWriter, *http.Request) { calls.Add(1) })
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(r.URL, "http://"))
	names := &nameServer{answers: [][]string{{"127.0.0.1"}}}
	resolver := names.serve(t)
	for _, host := range []string{"127.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0", "[::1]", "example.com"} {
		_, err := send(t, Config{Resolver: resolver}, "http://"+host+":"+port)
		if !errs.HasCode(err, "private_address") || strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("%s: %v", host, err)
		}
	}
	if calls.Load() != 0 {
		t.Error("the receiver was called")
	}
	if _, err := send(t, Config{AllowPrivate: true, Resolver: resolver}, "http://example.com:"+port); err != nil || calls.Load() != 1 {
		t.Errorf("where it is allowed: %v, %d calls", err, calls.Load())
	}
}

// TestTheHostsOwnAddressesAreNotDialled has a host with a public address: its
// listeners may still be closed to the internet.
func TestTheHostsOwnAddressesAreNotDialled(t *testing.T) {
	own := func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.ParseIP("8.8.4.4"), Mask: net.CIDRMask(24, 32)}, &net.IPNet{IP: net.ParseIP("2600::7"), Mask: net.CIDRMask(64, 128)}}, nil
	}
	for address, refused := range map[string]bool{
		"8.8.4.4:443": true, "[::ffff:8.8.4.4]:443": true, "[2600::7]:443": true, "8.8.4.5:443": false, "[2600::8]:443": false, "10.0.0.1:443": true,
	} {
		if err := refusePrivate(own)("tcp", address, nil); refused != errors.Is(err, errPrivate) {
			t.Errorf("%s: %v", address, err)
		}
	}
	unknown := func() ([]net.Addr, error) { return nil, errors.New("netlink is away") }
	if err := refusePrivate(unknown)("tcp", "8.8.4.5:443", nil); err == nil {
		t.Error("dialled although the host's addresses are unknown")
	}
}

// TestDNSRebinding uses a name that resolves to a public address only the first time.
func TestDNSRebinding(t *testing.T) {
	var calls atomic.Int32
	r := receiver(t, func(http.ResponseWriter, *http.Request) { calls.Add(1) })
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(r.URL, "http://"))
	names := &nameServer{answers: [][]string{{"192.0.2.1"}, {"127.0.0.1"}, {"192.0.2.1", "127.0.0.1"}}}
	resolver := names.serve(t)
	for range 3 {
		if _, err := send(t, Config{Resolver: resolver}, "http://rebind.example:"+port); !errs.HasCode(err, "private_address") {
			t.Errorf("got %v", err)
		}
	}
	if calls.Load() != 0 || names.asked.Load() < 3 {
		t.Errorf("%d calls, the name was looked up %d times", calls.Load(), names.asked.Load())
	}
}

// nameServer answers each question for an address with the next of answers,
// and continues with the last.
type nameServer struct {
	answers [][]string
	asked   atomic.Int32
}

func (n *nameServer) serve(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(n.answer)}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown(); _ = conn.Close(); <-served })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (n *nameServer) answer(w dns.ResponseWriter, q *dns.Msg) {
	reply := new(dns.Msg).SetReply(q)
	if q.Question[0].Qtype == dns.TypeA {
		at := min(int(n.asked.Add(1))-1, len(n.answers)-1)
		for _, address := range n.answers[at] {
			reply.Answer = append(reply.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(address),
			})
		}
	}
	_ = w.WriteMsg(reply)
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	r := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			t.Error("followed")
		}
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	if answer, err := send(t, Config{AllowPrivate: true}, r.URL); err != nil || answer.StatusCode != 307 {
		t.Errorf("%+v, %v", answer, err)
	}
}

// TestAnswersAreBounded gets an endless response.
func TestAnswersAreBounded(t *testing.T) {
	wrote := make(chan int64, 1)
	r := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(w, endless{})
		wrote <- n
	})
	if answer, err := send(t, Config{AllowPrivate: true}, r.URL); err != nil || answer.StatusCode != 200 {
		t.Errorf("%+v, %v", answer, err)
	}
	if n := <-wrote; n > 64<<20 {
		t.Errorf("%d bytes went through", n)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestPublicErrors(t *testing.T) {
	closed := receiver(t, nil)
	closed.Close()
	unsafe := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(unsafe.Close)
	unsafe.Config.ErrorLog = nil
	broken := receiver(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	silent := receiver(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() })
	noNames := &nameServer{answers: [][]string{nil}}
	for url, code := range map[string]string{
		closed.URL: "connection_refused", unsafe.URL: "bad_certificate", broken.URL: "unreachable",
		"http://nowhere.example": "no_such_host", "http://%zz": "invalid_url",
	} {
		_, err := send(t, Config{AllowPrivate: true, Resolver: noNames.serve(t)}, url)
		if !errs.HasCode(err, code) || strings.Contains(err.Error(), "127.0.0.1") && code != "invalid_url" {
			t.Errorf("%s: %v", url, err)
		}
	}
	s := New(Config{AllowPrivate: true})
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Send(ctx, webhook.Message{URL: silent.URL}); !errs.HasCode(err, "timeout") {
		t.Errorf("silence: %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	for header, want := range map[string]time.Duration{"": 0, "x": 0, "-5": 0, "120": 2 * time.Minute, "99999999999999": 0, "Mon, 02 Jan 2006 15:04:05 GMT": 0} {
		if got := retryAfter(header); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
	if got := retryAfter(time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)); got < 59*time.Minute || got > time.Hour {
		t.Errorf("in an hour: %s", got)
	}
}

// TestAReceiverCanVerify verifies a message as the specification says, with the
// standard library only.
func TestAReceiverCanVerify(t *testing.T) {
	key := []byte("0123456789abcdef01234567")
	verified := make(chan bool, 1)
	r := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(r.Header.Get("webhook-id") + "." + r.Header.Get("webhook-timestamp") + "." + string(body)))
		want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
		verified <- hmac.Equal([]byte(want), []byte(r.Header.Get("webhook-signature")))
	})
	s := New(Config{AllowPrivate: true})
	defer func() { _ = s.Close() }()
	m := webhook.Message{URL: r.URL, ID: "evt_1", Timestamp: time.Now(), Body: []byte(`{}`)}
	if err := m.Sign("whsec_" + base64.StdEncoding.EncodeToString(key)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if !<-verified {
		t.Error("the signature does not fit")
	}
	m.Signature = "v1,AAAA"
	if _, err := s.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if <-verified {
		t.Error("any signature fits: the test shows nothing")
	}
}
