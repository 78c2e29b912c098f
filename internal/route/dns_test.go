package route_test

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/route"
)

// dnsServer answers with TXT records; names without one have no address either.
func dnsServer(t *testing.T, records map[string]string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		name := q.Question[0].Name
		switch value, found := records[name]; {
		case found && value != "":
			m.Answer = append(m.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{value}})
		case !found:
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.ActivateAndServe(); err != nil {
			t.Error(err)
		}
	})
	<-started
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// A name that does not exist, and one without a TXT record, prove nothing; with the
// right record, the domain is proved.
func TestProofsInTheDNS(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	records := map[string]string{"_hatch.empty.example.org.": ""}
	make := func(domain string) route.Route {
		r, err := w.Create(ctx, caller("acc_a", access.RightsOf(access.Write(access.Routes))), "vm_a", route.Draft{Spec: route.Spec{Domain: domain, Port: 80}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	absent, empty, proved := make("absent.example.org"), make("empty.example.org"), make("proved.example.org")
	records["_hatch.proved.example.org."] = proved.Proof
	w.cfg.DNS = dnsServer(t, records)
	w.open(t)
	for _, r := range []route.Route{absent, empty} {
		if _, err := w.Verify(ctx, access.Owner("acc_a"), r.ID); !errs.HasCode(err, "domain_unproven") {
			t.Errorf("%s: %v", r.Domain, err)
		}
	}
	if r, err := w.Verify(ctx, access.Owner("acc_a"), proved.ID); err != nil || !r.Served() {
		t.Errorf("%s: %v", r.Domain, err)
	}
}
