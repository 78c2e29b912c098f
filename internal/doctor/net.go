package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

func (e examiner) tun(context.Context) Check {
	const name, node = "tun", "/dev/net/tun"
	err := e.OpenDevice(node)
	switch {
	case err == nil:
		return pass(name, "%s can be opened", node)
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return fail(name, "%s does not exist, so VMs cannot have a network", node).
			fix("modprobe tun && mkdir -p /dev/net && { test -c %[1]s || mknod -m 0666 %[1]s c 10 200; }", node)
	}
	return fail(name, "%s cannot be opened: %v", node, err).hint("run as root; in a container, start it with --device %s", node)
}

func (e examiner) links(context.Context) Check {
	const name = "bridge"
	if err := e.CreateLinks(); err != nil {
		return fail(name, "a bridge and a TAP interface cannot be created: %v", err).fix("modprobe bridge && modprobe tun")
	}
	return pass(name, "bridge and TAP interfaces can be created")
}

func (e examiner) nftables(context.Context) Check {
	const name = "nftables"
	if _, err := e.Chains(); err != nil {
		return fail(name, "nftables does not respond: %v", err).fix("modprobe nf_tables")
	}
	return pass(name, "nftables responds")
}

// forwarding never fails: hatchd enables it with its network. To enable it before would
// make a router of the host, which hatchd then leaves as it is.
func (e examiner) forwarding(context.Context) Check {
	const name, key = "ip_forward", "net.ipv4.ip_forward"
	value, err := e.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		return warn(name, "cannot read %s: %v", key, err)
	}
	if strings.TrimSpace(string(value)) != "1" {
		return pass(name, "IPv4 forwarding is off; hatchd switches it on, for its own bridge only")
	}
	return pass(name, "IPv4 forwarding is on")
}

// Chain is a base chain of nftables, for forwarded packets or for those to the host.
type Chain struct {
	Family string // ip, inet, …
	Table  string
	Name   string
	Input  bool     // it is for packets to the host
	Drops  bool     // its policy is drop, or its last rule drops or rejects all packets
	Admits []string // interfaces that its rules name, and the rules of chains it jumps to
}

// firewall looks for chains that drop what hatchd's own rules accept: packets from
// guests to the internet, and DHCP and DNS from guests to the host.
func (e examiner) firewall(context.Context) Check {
	const name = "firewall"
	chains, err := e.Chains()
	if err != nil {
		return warn(name, "cannot read whether another firewall drops guests' packets: %v", err).hint("run hatch doctor as root")
	}
	for _, c := range chains {
		if !c.Drops || strings.HasPrefix(c.Table, "hatch") || slices.Contains(c.Admits, e.BridgeName) {
			continue
		}
		what := "forwarded packets, including guests'"
		if c.Input {
			what = "packets to this host, including guests' DHCP and DNS"
		}
		return warn(name, "the chain \"%s %s %s\" of another firewall drops %s", c.Family, c.Table, c.Name, what).
			fix("%s", e.admit(c))
	}
	return pass(name, "no other firewall drops guests' packets by default")
}

// admit returns the command that lets the bridge's packets through a chain. hatchd's
// own rules still apply to them. firewalld replaces its chains when it reloads, so it
// gets a setting instead of a rule.
func (e examiner) admit(c Chain) string {
	bridge := quote(e.BridgeName)
	if c.Table == "firewalld" {
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", bridge)
	}
	command := fmt.Sprintf("nft insert rule %s %s %s iifname %s accept", c.Family, c.Table, c.Name, bridge)
	if !c.Input {
		command += fmt.Sprintf(" && nft insert rule %s %s %s oifname %s accept", c.Family, c.Table, c.Name, bridge)
	}
	if _, err := e.LookPath("nft"); err != nil {
		return install("nftables") + " && " + command
	}
	return command
}

func (e examiner) httpPort(ctx context.Context) Check {
	const name = "http_port"
	err := e.Listen(ctx, e.HTTPAddr)
	if err == nil {
		return pass(name, "%s is free", e.HTTPAddr)
	}
	ills, ok := e.answer(ctx)
	switch {
	case len(ills) > 0:
		return fail(name, "hatchd answers on %s, and says what is wrong: %s", e.HTTPAddr, strings.Join(ills, "; ")).
			hint("do what it says, and look into its log")
	case ok:
		return pass(name, "hatchd answers on %s", e.HTTPAddr)
	}
	return fail(name, "hatchd cannot listen on %s: %v", e.HTTPAddr, err).
		hint("stop the program that listens there (ss -ltnp), or set HATCH_HTTP_ADDR to another address")
}

// answer asks a hatchd that runs how it is: over TLS it may want a certificate, which
// its local socket does not.
func (e examiner) answer(ctx context.Context) (ills []string, ok bool) {
	asked := []string{"http://" + e.HTTPAddr}
	if e.HTTPTLS {
		asked = nil
		for _, path := range e.Sockets {
			asked = append(asked, "unix://"+path)
		}
	}
	for _, server := range asked {
		if ills, ok = e.Answers(ctx, server); ok {
			return ills, true
		}
	}
	return nil, false
}

func (e examiner) apiTLS(context.Context) Check {
	const name = "api_tls"
	switch {
	case e.ExposesHTTP:
		return warn(name, "other hosts reach the API on %s without TLS, so that keys can be read on the way", e.HTTPAddr).
			hint("set HATCH_HTTP_TLS_CERT and HATCH_HTTP_TLS_KEY, or HATCH_HTTP_ADDR to loopback with a TLS proxy in front of it")
	case e.HTTPTLS:
		return pass(name, "the API on %s is served over TLS", e.HTTPAddr)
	}
	return pass(name, "the API on %s is for this host only", e.HTTPAddr)
}
