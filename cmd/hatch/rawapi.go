package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

// rawCall is one request of hatch api.
type rawCall struct {
	method, path string
	data         string
	headers      []string
	include      bool
}

func (c *cli) apiCommand() *cobra.Command {
	var call rawCall
	cmd := &cobra.Command{
		Use: "api METHOD PATH", Short: "Call the API as it is, with your key",
		Long:    "Call the API as it is, with your key, and print the answer's body as it comes.\nAn answer other than 2xx is printed too, and makes the command fail.",
		Example: "  hatch api GET '/vms?limit=2'\n  hatch api POST /vms -d '{\"vcpu_count\": 2}'\n  hatch api GET /openapi.json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 || !strings.HasPrefix(args[1], "/") {
				return usage(cmd, "hatch api takes a method and a path that starts with /")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			call.method, call.path = strings.ToUpper(args[0]), args[1]
			if err := c.callAPI(cmd.Context(), call, cmd.Flags().Changed("data")); err != nil {
				return fmt.Errorf("cannot call %s %s: %w", call.method, call.path, err)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&call.data, "data", "d", "", "`body`: JSON, @FILE or - for stdin")
	cmd.Flags().StringArrayVarP(&call.headers, "header", "H", nil, "`NAME: VALUE` to send (repeatable)")
	cmd.Flags().BoolVarP(&call.include, "include", "i", false, "print the status and the headers too")
	return cmd
}

func (c *cli) callAPI(ctx context.Context, call rawCall, hasBody bool) error {
	req, err := c.rawRequest(ctx, call, hasBody)
	if err != nil {
		return err
	}
	// No redirect is followed: the key is for this server alone.
	caller := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := caller.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if call.include {
		fmt.Fprintf(c.out, "%s %s\n", resp.Proto, clean(resp.Status))
		_ = resp.Header.Write(c.out)
		fmt.Fprintln(c.out)
	}
	if err := c.copyBody(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return fmt.Errorf("the server answered %s", resp.Status)
	}
	return nil
}

func (c *cli) rawRequest(ctx context.Context, call rawCall, hasBody bool) (*http.Request, error) {
	var body io.Reader
	if hasBody {
		text, err := c.rawBody(call.data)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, call.method, strings.TrimRight(c.server(), "/")+call.path, body)
	if err != nil {
		return nil, err
	}
	key, err := c.key()
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
			return nil, fmt.Errorf("a header looks like NAME: VALUE, not %q", h)
		}
		req.Header.Set(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return req, nil
}

func (c *cli) rawBody(data string) ([]byte, error) {
	if file, ok := strings.CutPrefix(data, "@"); ok {
		return c.readInput(file)
	}
	if data == "-" {
		return c.readInput(data)
	}
	return []byte(data), nil
}

// copyBody prints the body, with a line's end on a terminal.
func (c *cli) copyBody(body io.Reader) error {
	if !c.outTTY {
		_, err := io.Copy(c.out, body)
		return err
	}
	if _, err := io.Copy(&cleaner{w: c.out}, body); err != nil {
		return err
	}
	fmt.Fprintln(c.out)
	return nil
}
