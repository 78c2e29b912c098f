package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// rawCall is one request of hatch api.
type rawCall struct {
	method, path string
	data         string
	headers      []string
	include      bool
}

func (c serverCommands) api() *cobra.Command {
	var call rawCall
	cmd := &cobra.Command{
		Use: "api METHOD PATH", Short: "Send a request to the API, with your key",
		Long:    "Send a request to the API, with your key, and print the body of the response\nunchanged. A status other than 2xx makes the command fail.",
		Example: "  hatch api GET '/vms?limit=2'\n  hatch api POST /vms -d '{\"vcpu_count\": 2}'\n  hatch api GET /openapi.json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 || !strings.HasPrefix(args[1], "/") {
				return usage(cmd, "hatch api takes a method and a path that starts with /")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			call.method, call.path = strings.ToUpper(args[0]), args[1]
			if err := c.call(cmd.Context(), call, cmd.Flags().Changed("data")); err != nil {
				return fmt.Errorf("cannot call %s %s: %w", call.method, call.path, err)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&call.data, "data", "d", "", "`body`: JSON, @FILE or - for stdin")
	cmd.Flags().StringArrayVarP(&call.headers, "header", "H", nil, "`NAME: VALUE` to send (repeatable)")
	cmd.Flags().BoolVarP(&call.include, "include", "i", false, "print the status and the headers, too")
	return cmd
}

func (c serverCommands) call(ctx context.Context, call rawCall, hasBody bool) error {
	t, err := c.target()
	if err != nil {
		return err
	}
	transport, err := newHTTPClient(t)
	if err != nil {
		return err
	}
	req, err := c.request(ctx, t, call, hasBody)
	if err != nil {
		return err
	}
	resp, err := transport.Do(req)
	if err != nil {
		return client.Unreachable(t.url, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if call.include {
		fmt.Fprintf(c.out, "%s %s\n", resp.Proto, clean(resp.Status))
		_ = resp.Header.Write(c.out)
		fmt.Fprintln(c.out)
	}
	if c.outTTY {
		_, err = io.Copy(&cleaner{w: c.out}, resp.Body)
		fmt.Fprintln(c.out)
	} else {
		_, err = io.Copy(c.out, resp.Body)
	}
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return &client.Error{Problem: api.Problem{Status: resp.StatusCode, Error: "the server answered " + resp.Status}}
	}
	return nil
}

func (c serverCommands) request(ctx context.Context, t target, call rawCall, hasBody bool) (*http.Request, error) {
	var body io.Reader
	if hasBody {
		text := []byte(call.data)
		if file, isFile := strings.CutPrefix(call.data, "@"); isFile || call.data == "-" {
			var err error
			if text, err = c.readInput(file); err != nil {
				return nil, err
			}
		}
		body = bytes.NewReader(text)
	}
	base := strings.TrimRight(t.url, "/")
	if t.socket() != "" {
		base = "http://localhost"
	}
	req, err := http.NewRequestWithContext(ctx, call.method, base+call.path, body)
	if err != nil {
		return nil, err
	}
	key, err := c.key(t)
	if err != nil {
		return nil, err
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if hasBody {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range call.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return nil, usageError{fmt.Errorf("--header takes NAME: VALUE, not %q", h)}
		}
		req.Header.Set(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return req, nil
}
