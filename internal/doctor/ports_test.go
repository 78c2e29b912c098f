package doctor

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
)

func TestPortsOfRoutesAndVMs(t *testing.T) {
	taken := func(addr string) System {
		return host(func(s *System) {
			s.Listen = func(_ context.Context, at string) error {
				if at == addr {
					return syscall.EADDRINUSE
				}
				return nil
			}
		})
	}
	running := taken("127.0.0.1:9090")
	running.Answers = func(context.Context, string) ([]string, bool) { return nil, true }
	unknown := host(func(s *System) {
		s.LookupHost = func(_ context.Context, host string) ([]string, error) { return nil, errors.New("no such host " + host) }
	})
	for name, c := range map[string]struct {
		sys           System
		change        func(*Settings)
		check         string
		status        Status
		message, hint string
	}{
		"another program has the port": {taken("127.0.0.1:9090"), func(*Settings) {}, "proxy_ports", Fail, "HATCH_PROXY_ADDR 127.0.0.1:9090: address already in use", "HATCH_PROXY_ADDR"},
		"hatchd has the port":          {running, func(*Settings) {}, "proxy_ports", Pass, "hatchd runs", ""},
		"the port of TLS":              {taken(":443"), func(s *Settings) { s.TLSAddr = ":443" }, "proxy_ports", Fail, "HATCH_TLS_ADDR :443", "HATCH_TLS_ADDR"},
		"no routes":                    {taken("127.0.0.1:9090"), func(s *Settings) { s.ProxyAddr = "" }, "proxy_ports", Pass, "not served", ""},
		"published ports in use": {
			host(func(s *System) { s.Listen = func(context.Context, string) error { return syscall.EADDRINUSE } }), func(*Settings) {},
			"published_ports", Warn, "26001 26002", "HATCH_PORT_MIN",
		},
		"ranges overlap":           {goodHost(), func(s *Settings) { s.PortMin = 26000 }, "port_ranges", Fail, "overlap", "apart"},
		"the API in a range":       {goodHost(), func(s *Settings) { s.HTTPAddr = ":16001" }, "port_ranges", Fail, "HATCH_HTTP_ADDR :16001", "HATCH_HTTP_ADDR"},
		"routes in a range":        {goodHost(), func(s *Settings) { s.ProxyAddr = ":30000" }, "port_ranges", Fail, "HATCH_PROXY_ADDR :30000", "HATCH_PROXY_ADDR"},
		"the host's ports":         {goodHost(), func(s *Settings) { s.PortMax = 32768 }, "port_ranges", Warn, "32768 to 60999", "ip_local_reserved_ports"},
		"unknown ports":            {withFile(localPorts, "x"), func(*Settings) {}, "port_ranges", Warn, "ip_local_port_range", ""},
		"localhost":                {unknown, func(*Settings) {}, "proxy_domain", Pass, "no DNS is needed", ""},
		"TLS below localhost":      {goodHost(), func(s *Settings) { s.TLSAddr = ":443" }, "proxy_domain", Warn, "leads each client to itself", "HATCH_PROXY_DOMAIN"},
		"a domain":                 {goodHost(), func(s *Settings) { s.ProxyDomain = "apps.example.org" }, "proxy_domain", Pass, "lead to 192.0.2.1", ""},
		"a domain without records": {unknown, func(s *Settings) { s.ProxyDomain = "apps.example.org" }, "proxy_domain", Warn, "hatch-doctor.apps.example.org", "*.apps.example.org"},
		"a domain and no routes":   {unknown, func(s *Settings) { s.ProxyDomain, s.ProxyAddr = "apps.example.org", "" }, "proxy_domain", Pass, "not served", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := settings()
			c.change(&s)
			got := find(t, Run(t.Context(), c.sys, s), c.check)
			if got.Status != c.status || !strings.Contains(got.Message, c.message) || !strings.Contains(got.Hint, c.hint) {
				t.Errorf("got %+v", got)
			}
		})
	}
}
