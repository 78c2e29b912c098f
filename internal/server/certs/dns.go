package certs

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"
)

// DNS changes the TXT records of an ACME server's DNS challenge by dynamic updates
// (RFC 2136), which most authoritative servers can take.
type DNS struct {
	Server string // host:port
	Key    string // name of the TSIG key
	Secret string // of the key, in base64; HMAC-SHA256
}

// NewDNS returns a DNS with a key of the form NAME:SECRET.
func NewDNS(server, key string) *DNS {
	name, secret, _ := strings.Cut(key, ":")
	return &DNS{Server: server, Key: dns.Fqdn(name), Secret: secret}
}

// AppendRecords implements libdns.RecordAppender.
func (d *DNS) AppendRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	return d.update(ctx, zone, recs, (*dns.Msg).Insert)
}

// DeleteRecords implements libdns.RecordDeleter.
func (d *DNS) DeleteRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	return d.update(ctx, zone, recs, (*dns.Msg).Remove)
}

// tsigFudge is how far clocks may differ, in seconds.
const tsigFudge = 300

func (d *DNS) update(ctx context.Context, zone string, recs []libdns.Record, change func(*dns.Msg, []dns.RR)) ([]libdns.Record, error) {
	var rrs []dns.RR
	for _, rec := range recs {
		r := rec.RR()
		if r.Type != "TXT" {
			return nil, fmt.Errorf("cannot change a record of type %s", r.Type)
		}
		rrs = append(rrs, &dns.TXT{
			Hdr: dns.RR_Header{Name: libdns.AbsoluteName(r.Name, dns.Fqdn(zone)), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: uint32(r.TTL / time.Second)},
			Txt: []string{r.Data},
		})
	}
	m := new(dns.Msg).SetUpdate(dns.Fqdn(zone))
	change(m, rrs)
	m.SetTsig(d.Key, dns.HmacSHA256, tsigFudge, time.Now().Unix())
	client := &dns.Client{Net: "tcp", TsigSecret: map[string]string{d.Key: d.Secret}}
	answer, _, err := client.ExchangeContext(ctx, m, d.Server)
	if err != nil {
		return nil, fmt.Errorf("cannot update DNS at %s: %w", d.Server, err)
	}
	if answer.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("cannot update DNS at %s: it answers %s", d.Server, dns.RcodeToString[answer.Rcode])
	}
	return recs, nil
}
