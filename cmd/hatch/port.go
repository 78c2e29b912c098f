package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
)

// addresses are the listening addresses that -p of docker is most often given, and the
// networks that they let in.
var addresses = map[string][]string{"127.0.0.1": {"127.0.0.1/32"}, "0.0.0.0": {"0.0.0.0/0"}}

// readPort reads a port to publish: [HOST:]GUEST, or 127.0.0.1 or 0.0.0.0 before it as
// for docker.
func readPort(flag, text string) (api.Port, error) {
	bad := usageError{fmt.Errorf("--%s takes [HOST:]GUEST with ports from 1 to 65535, as 80 or 8080:80, not %q", flag, text)}
	parts := strings.Split(strings.TrimSuffix(text, "/tcp"), ":")
	var p api.Port
	if len(parts) == 3 {
		if p.AllowedCIDRs = addresses[parts[0]]; p.AllowedCIDRs == nil {
			return p, usageError{fmt.Errorf("--%s: only 127.0.0.1 or 0.0.0.0 can be given before the ports, not %q; --publish-from says which networks may connect", flag, parts[0])}
		}
		parts = parts[1:]
		if parts[0] == "" { // any, as for docker
			parts = parts[1:]
		}
	}
	var err error
	if p.Guest, err = readPortNumber(parts[len(parts)-1]); err != nil || len(parts) > 2 {
		return p, bad
	}
	if len(parts) == 2 {
		if p.Host, err = readPortNumber(parts[0]); err != nil {
			return p, bad
		}
	}
	return p, nil
}

func readPortNumber(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err == nil && n == 0 {
		err = errors.New("no port is 0")
	}
	return int(n), err
}

// readPorts reads ports to publish. from are the networks that may connect to those
// that do not say so.
func readPorts(flag string, texts, from []string) ([]api.Port, error) {
	ports := make([]api.Port, len(texts))
	for i, text := range texts {
		var err error
		if ports[i], err = readPort(flag, text); err != nil {
			return nil, err
		}
		if ports[i].AllowedCIDRs == nil {
			ports[i].AllowedCIDRs = from
		}
	}
	return ports, nil
}

// shownPorts returns published ports as lists show them. Without a lease, a VM may have
// no port of the host.
func shownPorts(ports []api.Port) string {
	all := make([]string, len(ports))
	for i, p := range ports {
		if all[i] = strconv.Itoa(p.Guest); p.Host != 0 {
			all[i] = fmt.Sprintf("%d->%d", p.Host, p.Guest)
		}
	}
	return strings.Join(all, ",")
}

// republish returns the ports of a VM without some, and with others in the place of
// those for the same port of the guest.
func republish(ports, add []api.Port, remove []int) ([]api.Port, error) {
	all := slices.Clone(ports)
	index := func(guest int) int {
		return slices.IndexFunc(all, func(p api.Port) bool { return p.Guest == guest })
	}
	for _, guest := range remove {
		i := index(guest)
		if i < 0 {
			return nil, fmt.Errorf("it does not publish port %d", guest)
		}
		all = slices.Delete(all, i, i+1)
	}
	for _, p := range add {
		if i := index(p.Guest); i >= 0 {
			p.Name = all[i].Name
			all[i] = p
		} else {
			all = append(all, p)
		}
	}
	return all, nil
}

func (c vmCommands) portCommand() *cobra.Command {
	return &cobra.Command{
		Use: "port VM [PORT]", Short: "List the published ports of a VM, or where one is",
		Long: `List the published ports of a VM: each port of the guest, and the address and port
of the server that lead to it. With a port of the guest, print the latter only.`,
		Example:           "  hatch port web\n  curl http://$(hatch port web 80)/",
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usage(cmd, "%s takes a VM, and a port of it", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			_, v, err := c.openVM(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("cannot list the ports of %s: %w", args[0], err)
			}
			server, err := c.host()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return printList(c.printer, v.Ports, func(bool) table {
					t := table{head: []string{"PORT", "NAME", "ADDRESS", "ALLOWED"}}
					for _, p := range v.Ports {
						t.row(strconv.Itoa(p.Guest), p.Name, net.JoinHostPort(server, strconv.Itoa(p.Host)), strings.Join(p.AllowedCIDRs, ","))
					}
					return t
				})
			}
			for _, p := range v.Ports {
				if args[1] == strconv.Itoa(p.Guest) || args[1] == p.Name && p.Name != "" {
					return c.printLine(p, net.JoinHostPort(server, strconv.Itoa(p.Host)))
				}
			}
			return hint(fmt.Errorf("%s does not publish port %s", displayName(v), clean(args[1])), "hatch set %s --publish %s", displayName(v), clean(args[1]))
		},
	}
}
