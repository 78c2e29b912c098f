package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/hatchvm/hatch/internal/logkey"
)

const (
	answerTimeout   = 6 * time.Second // for all resolvers together
	upstreamTimeout = 2 * time.Second // for one resolver
	plainUDPAnswer  = 512             // bytes that a client without EDNS accepts
	maxUDPAnswer    = 1232            // bytes
)

// ServeDNS answers one question. It implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, question *dns.Msg) {
	var from netip.Addr
	if remote, err := netip.ParseAddrPort(w.RemoteAddr().String()); err == nil {
		from = remote.Addr().Unmap()
	}
	if !s.cfg.Clients.Contains(from) {
		_ = w.Close() // no answer: a forged source address would send it to a victim
		return
	}
	var answer *dns.Msg
	if code := refuse(question); code != dns.RcodeSuccess {
		answer = failure(question, code)
	} else {
		answer = s.forward(from, question)
	}
	if _, udp := w.LocalAddr().(*net.UDPAddr); udp {
		answer.Truncate(maxAnswer(question))
	}
	_ = w.WriteMsg(answer) // an error: the guest is gone
}

// refuse returns the code to refuse a question with, or success.
func refuse(m *dns.Msg) int {
	switch {
	case m.Opcode != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case len(m.Question) != 1:
		return dns.RcodeFormatError
	case m.Question[0].Qclass != dns.ClassINET:
		return dns.RcodeRefused
	}
	switch m.Question[0].Qtype {
	case dns.TypeANY, dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB:
		return dns.RcodeRefused
	}
	return dns.RcodeSuccess
}

func (s *Server) forward(from netip.Addr, question *dns.Msg) *dns.Msg {
	if !s.rates.allow(from) || !s.questions.acquire(from) {
		return failure(question, dns.RcodeServerFailure)
	}
	defer s.questions.release(from)
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	answer, err := s.ask(ctx, question)
	if err != nil {
		s.cfg.Log.Debug("cannot answer a DNS question", "from", from.String(), logkey.Error, err)
		return failure(question, dns.RcodeServerFailure)
	}
	return answer
}

// ask asks the resolvers in turn and returns the first answer.
func (s *Server) ask(ctx context.Context, question *dns.Msg) (*dns.Msg, error) {
	resolvers, err := s.upstreams.current()
	if err != nil {
		return nil, err
	}
	failed := errors.New("the host has no resolver")
	for _, resolver := range resolvers {
		answer, err := exchange(ctx, resolver, question)
		if err == nil {
			answer.Id = question.Id
			return answer, nil
		}
		failed = err
	}
	return nil, failed
}

// exchange asks one resolver, with a new id: by UDP, then by TCP if the answer is
// truncated.
func exchange(ctx context.Context, resolver string, question *dns.Msg) (*dns.Msg, error) {
	q := question.Copy()
	q.Id = dns.Id()
	for _, transport := range []string{"udp", "tcp"} {
		client := &dns.Client{Net: transport, Timeout: upstreamTimeout}
		answer, _, err := client.ExchangeContext(ctx, q, resolver)
		if err != nil {
			return nil, fmt.Errorf("cannot ask %s: %w", resolver, err)
		}
		if !answer.Response || len(answer.Question) != 1 || answer.Question[0] != q.Question[0] {
			return nil, fmt.Errorf("%s answered another question", resolver)
		}
		if transport == "tcp" || !answer.Truncated {
			return answer, nil
		}
	}
	return nil, errors.New("unreachable")
}

func failure(question *dns.Msg, code int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(question, code)
	m.RecursionAvailable = true
	return m
}

// maxAnswer returns the size of the largest UDP answer that the guest accepts.
func maxAnswer(question *dns.Msg) int {
	opt := question.IsEdns0()
	if opt == nil {
		return plainUDPAnswer
	}
	return min(max(int(opt.UDPSize()), plainUDPAnswer), maxUDPAnswer)
}
