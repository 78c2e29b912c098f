package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
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
		return fail(name, "%s is not there, so VMs cannot have a network", node).
			mendedBy("modprobe tun && mkdir -p /dev/net && { test -c %[1]s || mknod -m 0666 %[1]s c 10 200; }", node)
	}
	return fail(name, "%s cannot be opened: %v", node, err).hint("run as root; in a container, start it with --device %s", node)
}

func (e examiner) links(context.Context) Check {
	const name = "bridge"
	if err := e.CreateLinks(); err != nil {
		return fail(name, "a bridge and a TAP interface cannot be created: %v", err).mendedBy("modprobe bridge && modprobe tun")
	}
	return pass(name, "bridge and TAP interfaces can be created")
}

func (e examiner) nftables(context.Context) Check {
	const name = "nftables"
	if _, err := e.ForwardChains(); err != nil {
		return fail(name, "nftables does not answer: %v", err).mendedBy("modprobe nf_tables")
	}
	return pass(name, "nftables answers")
}

// forwarding warns only: hatchd switches it on with its own network.
func (e examiner) forwarding(context.Context) Check {
	const name, key = "ip_forward", "net.ipv4.ip_forward"
	value, err := e.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		return warn(name, "cannot read %s: %v", key, err)
	}
	if strings.TrimSpace(string(value)) != "1" {
		return warn(name, "IPv4 forwarding is off, so guests cannot reach the internet until it is on").
			mendedBy("sysctl -w %[1]s=1 && echo %[1]s=1 > /etc/sysctl.d/60-hatch.conf", key)
	}
	return pass(name, "IPv4 forwarding is on")
}

// Chain is a base chain on the forward hook, as nftables tells it.
type Chain struct {
	Family string // ip, inet, …
	Table  string
	Name   string
	Drops  bool     // whether its policy is drop
	Admits []string // interfaces that a rule of it names
}

func (e examiner) firewall(context.Context) Check {
	const name = "firewall"
	chains, err := e.ForwardChains()
	if err != nil {
		return warn(name, "cannot tell whether another firewall drops forwarded packets")
	}
	for _, c := range chains {
		if !c.Drops || strings.HasPrefix(c.Table, "hatch") || c.names(e.BridgeName) {
			continue
		}
		chain := fmt.Sprintf("%s %s %s", c.Family, c.Table, c.Name)
		return warn(name, "the chain %q of another firewall drops forwarded packets, guests' among them", chain).
			mendedBy("%s", e.admit(chain))
	}
	return pass(name, "no other firewall drops forwarded packets by default")
}

// admit is the command that lets the bridge's packets through a chain.
func (e examiner) admit(chain string) string {
	command := fmt.Sprintf("nft insert rule %[1]s iifname %[2]s accept && nft insert rule %[1]s oifname %[2]s accept", chain, quote(e.BridgeName))
	if _, err := e.LookPath("nft"); err != nil {
		return install("nftables") + " && " + command
	}
	return command
}

func (c Chain) names(iface string) bool {
	for _, a := range c.Admits {
		if a == iface {
			return true
		}
	}
	return false
}

func (e examiner) httpPort(ctx context.Context) Check {
	const name = "http_port"
	err := e.Listen(e.HTTPAddr)
	switch {
	case err == nil:
		return pass(name, "%s is free", e.HTTPAddr)
	case e.Answers(ctx, e.HTTPAddr):
		return pass(name, "hatchd answers on %s", e.HTTPAddr)
	}
	return fail(name, "hatchd cannot listen on %s: %v", e.HTTPAddr, err).
		hint("stop what listens there (ss -ltnp), or set HATCH_HTTP_ADDR to another address")
}

// sshSample is how many ports of the range are tried; each VM needs one.
const sshSample = 8

func (e examiner) sshPorts(context.Context) Check {
	const name = "ssh_ports"
	var taken []string
	for port := e.SSHPortMin; port <= e.SSHPortMax && port < e.SSHPortMin+sshSample; port++ {
		addr := net.JoinHostPort("", strconv.Itoa(port))
		if err := e.Listen(addr); err == nil {
			return pass(name, "ports from %d to %d, of which %d is free", e.SSHPortMin, e.SSHPortMax, port)
		}
		taken = append(taken, strconv.Itoa(port))
	}
	return warn(name, "the first ports for SSH are taken: %s", strings.Join(taken, " ")).
		hint("set HATCH_SSH_PORT_MIN and HATCH_SSH_PORT_MAX to a free range, unless these are VMs of Hatch")
}
