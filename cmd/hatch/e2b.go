package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/cmd/hatch/internal/e2bcheck"
)

// e2bCommands are hatch e2b.
type e2bCommands struct {
	*printer
	*connection
}

func (c e2bCommands) command() *cobra.Command {
	cmd := noun("e2b", "Use the client libraries of E2B with this server", c.envCommand(), c.checkCommand())
	cmd.Aliases = nil
	return cmd
}

// e2bVariables are what the client libraries read, in order.
type e2bVariables struct {
	APIURL     string `json:"E2B_API_URL"`
	SandboxURL string `json:"E2B_SANDBOX_URL,omitempty"`
	Domain     string `json:"E2B_DOMAIN,omitempty"`
	Key        string `json:"E2B_API_KEY,omitempty"`
}

func (v e2bVariables) lines() (lines []string) {
	for _, pair := range [][2]string{{"E2B_API_URL", v.APIURL}, {"E2B_SANDBOX_URL", v.SandboxURL}, {"E2B_DOMAIN", v.Domain}, {"E2B_API_KEY", v.Key}} {
		if pair[1] != "" {
			lines = append(lines, "export "+pair[0]+"="+shellQuoted(pair[1]))
		}
	}
	return lines
}

// shellQuoted returns one word for a shell.
func shellQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// variables returns those for this server, without a key.
func (c e2bCommands) variables(ctx context.Context) (e2bVariables, error) {
	server, err := c.client()
	if err != nil {
		return e2bVariables{}, err
	}
	at, err := server.E2B(ctx)
	if err != nil {
		return e2bVariables{}, fmt.Errorf("cannot find where the clients of E2B are served: %w", err)
	}
	if at.URL != "" {
		return e2bVariables{APIURL: at.URL, Domain: at.Domain}, nil
	}
	plain, err := c.plainURL(at.Addr)
	return e2bVariables{APIURL: plain, SandboxURL: plain}, err
}

// plainURL returns the URL of a listener of the server. One of all interfaces is reached at
// the address that the API is reached at.
func (c e2bCommands) plainURL(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("cannot use %q as an address: %w", addr, err)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		t, err := c.target()
		if err != nil {
			return "", err
		}
		host = "127.0.0.1" // for a local socket
		if t.socket() == "" {
			if host, err = t.host(); err != nil {
				return "", err
			}
		}
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

func (c e2bCommands) envCommand() *cobra.Command {
	var newKey string
	cmd := &cobra.Command{
		Use: "env", Short: "Print the variables that the client libraries of E2B need, for a shell", Args: noArgs,
		Long:    "Print the variables that the client libraries of E2B need, for a shell.\nThe key is printed only if this command makes it: its secret is shown once.",
		Example: "  eval \"$(hatch e2b env --new-key laptop)\"\n  python3 -c 'from e2b import Sandbox; print(Sandbox.create().commands.run(\"id\").stdout)'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			variables, err := c.variables(cmd.Context())
			if err != nil {
				return err
			}
			if newKey != "" {
				server, err := c.client()
				if err != nil {
					return err
				}
				key, err := server.CreateKey(cmd.Context(), api.CreateKey{Name: newKey, E2B: true})
				if err != nil {
					return fmt.Errorf("cannot create the key: %w", err)
				}
				variables.Key = key.Secret
			}
			return c.printOne(variables, func() {
				for _, line := range variables.lines() {
					fmt.Fprintln(c.out, line)
				}
				if newKey == "" {
					fmt.Fprintln(c.out, "# E2B_API_KEY is any API key of this server; hatch e2b env --new-key NAME makes one")
				}
			})
		},
	}
	cmd.Flags().StringVar(&newKey, "new-key", "", "make an API key of this `name`, and print it, too")
	return cmd
}

// e2bCheckTimeout bounds the check, in which a guest may boot.
const e2bCheckTimeout = 10 * time.Minute

func (c e2bCommands) checkCommand() *cobra.Command {
	var template string
	cmd := &cobra.Command{
		Use: "check", Short: "Make a sandbox as the client libraries of E2B do, run a command in it, and kill it", Args: noArgs,
		Long: "Make a sandbox as the client libraries of E2B do, run a command in it, and kill it.\nThe key is that of E2B_API_KEY, else one that is made for the check, and deleted after it.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			variables, err := c.variables(cmd.Context())
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), e2bCheckTimeout)
			defer cancel()
			steps, err := c.check(ctx, variables, template)
			printed := printList(c.printer, steps, func(bool) table {
				t := table{head: []string{"STEP", "TOOK", "DETAIL"}}
				for _, s := range steps {
					t.row(s.Name, fmt.Sprintf("%d ms", s.Took), s.Detail)
				}
				return t
			})
			return errors.Join(err, printed)
		},
	}
	cmd.Flags().StringVar(&template, "template", "base", "`template` to make the sandbox from")
	return cmd
}

// check runs the check with the key of the environment, or with one of its own.
func (c e2bCommands) check(ctx context.Context, at e2bVariables, template string) (steps []e2bcheck.Step, err error) {
	t, err := c.target()
	if err != nil {
		return nil, err
	}
	t.url = at.APIURL // with the authority of the context's certificates
	httpClient, err := newHTTPClient(t)
	if err != nil {
		return nil, err
	}
	cfg := e2bcheck.Config{API: at.APIURL, SandboxURL: at.SandboxURL, Key: c.getenv("E2B_API_KEY"), Template: template, HTTP: httpClient}
	if cfg.Key == "" {
		server, err := c.client()
		if err != nil {
			return nil, err
		}
		ends := time.Now().Add(2 * e2bCheckTimeout)
		key, err := server.CreateKey(ctx, api.CreateKey{
			Name: "e2b-check-" + strconv.FormatInt(ends.UnixNano(), 36), E2B: true, ExpiresAt: &api.Time{Time: ends},
		})
		if err != nil {
			return nil, fmt.Errorf("cannot create a key for the check: %w", err)
		}
		defer func() { err = errors.Join(err, server.DeleteKey(context.WithoutCancel(ctx), key.ID)) }()
		cfg.Key = key.Secret
	}
	return e2bcheck.Run(ctx, cfg)
}
