package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// sample is how many ports of a range are tested; each VM needs one.
const sample = 8

func (e examiner) sshPorts(ctx context.Context) Check {
	return e.freeIn(ctx, "ssh_ports", "for SSH", e.SSHPortMin, e.SSHPortMax, "HATCH_SSH_PORT_MIN and HATCH_SSH_PORT_MAX")
}

func (e examiner) publishedPorts(ctx context.Context) Check {
	return e.freeIn(ctx, "published_ports", "to publish guests' ports on", e.PortMin, e.PortMax, "HATCH_PORT_MIN and HATCH_PORT_MAX")
}

// freeIn looks for a free port at the start of a range, where the smallest is given first.
func (e examiner) freeIn(ctx context.Context, name, what string, least, most int, settings string) Check {
	var taken []string
	for port := least; port <= most && port < least+sample; port++ {
		addr := net.JoinHostPort("", strconv.Itoa(port))
		if err := e.Listen(ctx, addr); err == nil {
			return pass(name, "ports from %d to %d, of which %d is free", least, most, port)
		}
		taken = append(taken, strconv.Itoa(port))
	}
	return warn(name, "the first ports %s are taken: %s", what, strings.Join(taken, " ")).
		hint("set %s to a free range, unless these are VMs of Hatch", settings)
}

const localPorts = "/proc/sys/net/ipv4/ip_local_port_range"

// portRanges looks for ports that two would take: VMs' SSH ports, published ports,
// hatchd's own ports, and connections of the host's programs.
func (e examiner) portRanges(context.Context) Check {
	const name = "port_ranges"
	ssh, published := span{"SSH (HATCH_SSH_PORT_MIN, HATCH_SSH_PORT_MAX)", e.SSHPortMin, e.SSHPortMax}, span{"published ports (HATCH_PORT_MIN, HATCH_PORT_MAX)", e.PortMin, e.PortMax}
	if ssh.overlaps(published) {
		return fail(name, "the ranges for %s and for %s overlap", ssh, published).hint("set them to ranges apart")
	}
	for _, own := range []struct{ setting, addr string }{{"HATCH_HTTP_ADDR", e.HTTPAddr}, {"HATCH_PROXY_ADDR", e.ProxyAddr}, {"HATCH_TLS_ADDR", e.TLSAddr}} {
		_, text, _ := net.SplitHostPort(own.addr)
		port, err := strconv.Atoi(text)
		for _, of := range []span{ssh, published} {
			if err == nil && of.overlaps(span{own.setting, port, port}) {
				return fail(name, "%s %s is in the range for %s", own.setting, own.addr, of).hint("set %s to a port outside of it", own.setting)
			}
		}
	}
	var local span
	text, err := e.ReadFile(localPorts)
	if err == nil {
		_, err = fmt.Sscan(string(text), &local.least, &local.most)
	}
	if err != nil {
		return warn(name, "cannot read net.ipv4.ip_local_port_range: %v", err)
	}
	for _, of := range []span{ssh, published} {
		if !of.overlaps(local) {
			continue
		}
		return warn(name, "the range for %s overlaps with the ports %d to %d, which the host uses for its own connections: one that is in use cannot be a VM's", of, local.least, local.most).
			hint("choose a range outside of net.ipv4.ip_local_port_range, or add the VMs' ports to net.ipv4.ip_local_reserved_ports")
	}
	return pass(name, "the ranges for SSH and for published ports overlap with no others")
}

// span is a range of ports and what it is for.
type span struct {
	what        string
	least, most int
}

func (s span) String() string { return fmt.Sprintf("%s, %d to %d,", s.what, s.least, s.most) }

func (s span) overlaps(other span) bool { return s.least <= other.most && other.least <= s.most }

// proxyPorts looks whether routes can be served.
func (e examiner) proxyPorts(ctx context.Context) Check {
	const name = "proxy_ports"
	var free []string
	for _, own := range []struct{ setting, addr string }{{"HATCH_PROXY_ADDR", e.ProxyAddr}, {"HATCH_TLS_ADDR", e.TLSAddr}} {
		if own.addr == "" {
			continue
		}
		err := e.Listen(ctx, own.addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			if _, runs := e.Answers(ctx, e.HTTPAddr); runs {
				continue // most likely that hatchd has it
			}
		}
		if err != nil {
			return fail(name, "hatchd cannot serve routes on %s %s: %v", own.setting, own.addr, err).
				hint("stop the program that listens there (ss -ltnp), or set %s to another address, or to off", own.setting)
		}
		free = append(free, own.addr)
	}
	switch {
	case e.ProxyAddr == "" && e.TLSAddr == "":
		return pass(name, "routes are not served, as HATCH_PROXY_ADDR says")
	case len(free) == 0:
		return pass(name, "hatchd runs, and has the ports of routes")
	}
	return pass(name, "%s can be listened on", strings.Join(free, " and "))
}

// proxyDomain looks whether clients find routes by their names. It does not fail: a DNS
// that only clients ask may know them.
func (e examiner) proxyDomain(ctx context.Context) Check {
	const name = "proxy_domain"
	if e.ProxyAddr == "" && e.TLSAddr == "" {
		return pass(name, "routes are not served")
	}
	if e.ProxyDomain == "localhost" || strings.HasSuffix(e.ProxyDomain, ".localhost") {
		if e.TLSAddr != "" {
			return warn(name, "routes are served over TLS below %s, which leads each client to itself", e.ProxyDomain).hint("set HATCH_PROXY_DOMAIN to a domain of yours")
		}
		return pass(name, "names below %s lead each client to itself; no DNS is needed on this host", e.ProxyDomain)
	}
	host := "hatch-doctor." + e.ProxyDomain // which only a wildcard record has
	found, err := e.LookupHost(ctx, host)
	if err != nil || len(found) == 0 {
		return warn(name, "the DNS does not know %s: routes are not found by names below HATCH_PROXY_DOMAIN", host).
			hint("make a wildcard record *.%s that leads to this host", e.ProxyDomain)
	}
	return pass(name, "names below %s lead to %s", e.ProxyDomain, strings.Join(slices.Sorted(slices.Values(found)), " "))
}
