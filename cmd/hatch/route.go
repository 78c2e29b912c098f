package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var routeKind = kind[api.Route]{
	noun: "route", ls: "hatch route ls",
	list:  (*client.Client).ListRoutes,
	name:  func(r api.Route) named { return named{r.ID, r.Subdomain + r.Domain} },
	about: func(r api.Route) string { return fmt.Sprintf("port %d of %s", r.TargetPort, r.VMID) },
}

// routeCommands are hatch route, open and share.
type routeCommands struct {
	*printer
	*connection
}

func (c routeCommands) command() *cobra.Command {
	common := nounCommands[api.Route]{
		printer: c.printer, connection: c.connection, kind: routeKind,
		get: (*client.Client).GetRoute, remove: (*client.Client).DeleteRoute, table: c.table,
	}
	return noun("route", "Manage routes, host names that lead to ports of VMs",
		c.addCommand(), common.lsCommand("List routes"), common.inspectCommand(), common.rmCommand(), c.verifyCommand())
}

func (c routeCommands) table(routes []api.Route, wide bool) table {
	t := table{head: []string{"ID", "URL", "VM", "PORT", "AUTH", "AGE"}}
	if wide {
		t.head = append(t.head, "WAKES", "UPSTREAM", "ALLOWED", "DOMAIN")
	}
	for _, r := range routes {
		cells := []string{r.ID, r.URL, r.VMID, strconv.Itoa(r.TargetPort), r.Auth.Mode, c.age(r.CreatedAt)}
		if wide {
			cells = append(cells, yesNo(r.AutoWake), r.Upstream, strings.Join(r.AllowedCIDRs, ","), r.DomainState)
		}
		t.row(cells...)
	}
	return t
}

// readRoute parses [NAME=]PORT.
func readRoute(text string) (api.CreateRoute, error) {
	name, digits, named := strings.Cut(text, "=")
	if !named {
		name, digits = "", text
	}
	port, err := readPortNumber(digits)
	if err != nil || named && name == "" {
		return api.CreateRoute{}, usageError{fmt.Errorf("a route is PORT or NAME=PORT, as web=8080, not %q", text)}
	}
	return api.CreateRoute{Subdomain: name, TargetPort: port}, nil
}

func (c routeCommands) addCommand() *cobra.Command {
	body := api.CreateRoute{Auth: &api.RouteAuth{}}
	var passwordFile string
	var noWake, h2c bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "add VM [NAME=]PORT", Short: "Make a host name that leads to a port of a VM, and print its URL",
		Long: `Make a host name that leads to a port of a VM: NAME below the server's domain, or
a random name, or with --domain a host name of your own. A domain that has to be
proved is printed with the DNS record to make; hatch route verify looks for it.`,
		Example:           "  hatch route add web 8080\n  hatch route add web shop=8080 --auth key\n  hatch route add web 8080 --domain www.example.org",
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usage(cmd, "%s takes a VM and a port; %d were given", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			given, err := readRoute(args[1])
			if err != nil {
				return err
			}
			body.Subdomain, body.TargetPort, body.AutoWake = given.Subdomain, given.TargetPort, new(!noWake)
			if h2c {
				body.Upstream = api.UpstreamH2C
			}
			body.Timeouts = &api.RouteTimeouts{ResponseHeaderSeconds: int(timeout / time.Second)}
			if passwordFile != "" {
				text, err := c.readInput(passwordFile)
				if err != nil {
					return fmt.Errorf("cannot read the password: %w", err)
				}
				body.Auth.Password = strings.TrimRight(string(text), "\r\n")
			}
			return c.onVM(cmd.Context(), args[0], "make a route to", func(server *client.Client, v api.VM) error {
				r, err := server.CreateRoute(cmd.Context(), v.ID, body)
				if err != nil {
					return err
				}
				return c.printOne(r, func() { c.printRoute(r) })
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&body.Domain, "domain", "", "host `name` of your own")
	flags.StringVar(&body.Auth.Mode, "auth", api.AuthPublic, "who may send requests: public, key (an API key or a signed link) or basic")
	flags.StringVar(&body.Auth.Username, "username", "", "user `name` for --auth basic")
	flags.StringVar(&passwordFile, "password-file", "", "read the password for --auth basic from `file`, or - for stdin")
	flags.StringArrayVar(&body.AllowedCIDRs, "allow", nil, "accept requests from this `network` only (repeatable)")
	flags.BoolVar(&noWake, "no-wake", false, "do not wake a sleeping VM")
	flags.BoolVar(&h2c, "h2c", false, "the port speaks HTTP/2 without TLS, as gRPC servers do")
	flags.DurationVar(&timeout, "response-timeout", 0, "how long the guest may take until the head of an answer; 0 for no limit")
	_ = cmd.RegisterFlagCompletionFunc("auth", cobra.FixedCompletions([]string{api.AuthPublic, api.AuthKey, api.AuthBasic}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (c routeCommands) printRoute(r api.Route) {
	fmt.Fprintln(c.out, clean(r.URL))
	if v := r.Verification; v != nil {
		fmt.Fprintf(c.err, "the domain is not served yet: make the DNS record\n  %s. %s \"%s\"\nand then: hatch route verify %s\n", clean(v.Name), clean(v.Type), clean(v.Value), r.ID)
	}
}

// onVM calls do with the VM that ref refers to.
func (c routeCommands) onVM(ctx context.Context, ref, verb string, do func(*client.Client, api.VM) error) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	v, err := vmKind.find(ctx, server, ref)
	if err == nil {
		err = do(server, v)
	}
	return withContext(err, fmt.Sprintf("cannot %s %s", verb, ref))
}

func (c routeCommands) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify ROUTE", Short: "Look for the DNS record that proves a route's domain, and serve it", Args: oneArg("route"),
		ValidArgsFunction: routeKind.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			r, err := routeKind.find(cmd.Context(), server, args[0])
			if err == nil {
				r, err = server.VerifyRoute(cmd.Context(), r.ID)
			}
			if err != nil {
				return fmt.Errorf("cannot verify %s: %w", args[0], err)
			}
			return c.printLine(r, r.URL)
		},
	}
}

func (c routeCommands) open() *cobra.Command {
	return &cobra.Command{
		Use: "open VM [PORT|ROUTE]", Short: "Open a VM's page in the browser, and print its URL",
		Long: `Open a route to a VM in the browser, and print its URL; without a browser it is
printed only. A port without a route gets a signed link, which ends after an hour.`,
		Example:           "  hatch open web\n  hatch open web 3000",
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usage(cmd, "%s takes a VM and, at most, a port or a route; %d were given", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.onVM(cmd.Context(), args[0], "open", func(server *client.Client, v api.VM) error {
				routes, err := server.RoutesOf(cmd.Context(), v.ID)
				if err != nil {
					return err
				}
				url, err := c.urlOf(cmd.Context(), server, v, routes, args[1:])
				if err != nil {
					return err
				}
				if err := c.printLine(map[string]string{"url": url}, url); err != nil {
					return err
				}
				if c.outTTY {
					c.browse(cmd.Context(), url)
				}
				return nil
			})
		},
	}
}

// urlOf returns the URL of a port or route of a VM, by default of its only route.
func (c routeCommands) urlOf(ctx context.Context, server *client.Client, v api.VM, routes []api.Route, which []string) (string, error) {
	if len(which) == 0 {
		if len(routes) != 1 {
			return "", hint(fmt.Errorf("it has %d routes", len(routes)), "give a port or a route: hatch open %s 8080", displayName(v))
		}
		return routes[0].URL, nil
	}
	port, err := readPortNumber(which[0])
	if err != nil {
		r, err := pickFrom(routeKind, which[0], routes)
		return r.URL, err
	}
	for _, r := range routes {
		if r.TargetPort == port && r.Verification == nil {
			return r.URL, nil
		}
	}
	share, err := server.ShareVM(ctx, v.ID, api.ShareVM{Port: port})
	return share.URL, err
}

func (c routeCommands) share() *cobra.Command {
	var port int
	var life time.Duration
	var end bool
	cmd := &cobra.Command{
		Use: "share VM --port PORT", Short: "Print a link that lets others reach a port of a VM for some time", Args: oneArg("VM"),
		Long: `Print a signed link to a port of a VM: each browser that opens it reaches the
port without a key, until the link ends. It needs no route. --end ends all links
to the VM at once.`,
		Example:           "  hatch share web --port 3000 --for 2h\n  hatch share web --end",
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			if end == cmd.Flags().Changed("port") {
				return usage(cmd, "%s takes either --port or --end", cmd.CommandPath())
			}
			return c.onVM(cmd.Context(), args[0], "share", func(server *client.Client, v api.VM) error {
				if end {
					if err := server.EndShares(cmd.Context(), v.ID); err != nil {
						return err
					}
					return c.printLine(v, v.ID)
				}
				share, err := server.ShareVM(cmd.Context(), v.ID, api.ShareVM{Port: port, ExpiresInSeconds: int(life / time.Second)})
				if err != nil {
					return err
				}
				return c.printLine(share, share.URL)
			})
		},
	}
	cmd.Flags().IntVarP(&port, "port", "p", 0, "port of the guest")
	cmd.Flags().DurationVar(&life, "for", time.Hour, "how long the link is valid, 1m to 720h")
	cmd.Flags().BoolVar(&end, "end", false, "end all links to the VM")
	return cmd
}
