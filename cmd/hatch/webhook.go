package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c *cli) webhookCommand() *cobra.Command {
	k := kind[api.Webhook]{
		noun: "webhook", short: "List webhooks",
		list: (*client.Client).ListWebhooks, get: (*client.Client).GetWebhook, remove: (*client.Client).DeleteWebhook,
		name: webhookName, find: findWebhook, table: c.webhookTable, complete: c.completeWebhooks,
	}
	cmd := noun("webhook", "Manage servers that are told of events", c.webhookCreateCommand(), lsOf(c, k), inspectOf(c, k), rmOf(c, k),
		c.webhookSwitchCommand("enable", "Tell a webhook of what comes, again", true),
		c.webhookSwitchCommand("disable", "Tell a webhook of nothing any more", false),
		c.webhookTestCommand(), c.webhookDeliveriesCommand(), c.webhookRetryCommand())
	cmd.Aliases = []string{"webhooks"}
	return cmd
}

func webhookName(w api.Webhook) named { return named{w.ID, ""} }

func findWebhook(ctx context.Context, server *client.Client, ref string) (api.Webhook, error) {
	hooks, err := server.ListWebhooks(ctx)
	if err != nil {
		return api.Webhook{}, err
	}
	found, err := pickFrom("webhook", ref, hooks, webhookName)
	return found, orList(err, "hatch webhook ls")
}

func (c *cli) completeWebhooks(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.suggest(cmd, func(ctx context.Context, server *client.Client) ([]suggestion, error) {
		hooks, err := server.ListWebhooks(ctx)
		var found []suggestion
		for _, w := range hooks {
			found = append(found, suggestion{webhookName(w), w.URL})
		}
		return found, err
	})
}

func (c *cli) webhookTable(hooks []api.Webhook, wide bool) table {
	t := table{head: []string{"ID", "URL", "EVENTS", "ENABLED", "AGE"}}
	if wide {
		t.head = append(t.head, "DESCRIPTION", "REASON")
	}
	for _, w := range hooks {
		cells := []string{w.ID, w.URL, strings.Join(w.Events, ","), yesNo(w.Enabled), c.age(w.CreatedAt)}
		if wide {
			cells = append(cells, w.Description, w.DisabledReason)
		}
		t.row(cells...)
	}
	return t
}

func (c *cli) webhookCreateCommand() *cobra.Command {
	var body api.CreateWebhook
	var secretFile string
	cmd := &cobra.Command{
		Use: "create URL", Short: "Have events posted to a server, and print the webhook's id and secret", Args: oneArg("URL"),
		Long: `Have events posted to a server from now on, signed as Standard Webhooks asks. The
secret to verify them with is printed this once; keep it.`,
		Example: "  hatch webhook create https://example.com/hook --event vm.state_changed --event vm.deleted",
		RunE: func(cmd *cobra.Command, args []string) error {
			body.URL = args[0]
			made, err := c.createWebhook(cmd.Context(), body, secretFile)
			if err != nil {
				return fmt.Errorf("cannot create the webhook: %w", err)
			}
			return c.printOne(made, func() { fmt.Fprintf(c.out, "%s\n%s\n", made.ID, made.Secret) })
		},
	}
	cmd.Flags().StringArrayVar(&body.Events, "event", []string{"*"}, "`type` of event to be told of, as vm.deleted or vm.* (repeatable)")
	cmd.Flags().StringVar(&body.Description, "description", "", "what it is for")
	cmd.Flags().StringVar(&secretFile, "secret-file", "", "read the secret from `file`, or - for stdin; else one is made")
	return cmd
}

func (c *cli) createWebhook(ctx context.Context, body api.CreateWebhook, secretFile string) (api.Webhook, error) {
	server, err := c.client()
	if err != nil {
		return api.Webhook{}, err
	}
	if secretFile != "" {
		text, err := c.readInput(secretFile)
		if err != nil {
			return api.Webhook{}, fmt.Errorf("cannot read the secret: %w", err)
		}
		body.Secret = strings.TrimSpace(string(text))
	}
	return server.CreateWebhook(ctx, body)
}

func (c *cli) webhookSwitchCommand(verb, short string, enabled bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " WEBHOOK", Short: short, Args: oneArg("webhook"),
		ValidArgsFunction: c.completeWebhooks,
		RunE: c.onWebhook(verb, func(ctx context.Context, server *client.Client, w api.Webhook) error {
			changed, err := server.UpdateWebhook(ctx, w.ID, api.UpdateWebhook{Enabled: &enabled})
			if err != nil {
				return err
			}
			return c.printOne(changed, func() { fmt.Fprintln(c.out, changed.ID) })
		}),
	}
}

// onWebhook runs do on the webhook that the first argument means.
func (c *cli) onWebhook(verb string, do func(context.Context, *client.Client, api.Webhook) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		server, err := c.client()
		if err != nil {
			return err
		}
		w, err := findWebhook(cmd.Context(), server, args[0])
		if err == nil {
			err = do(cmd.Context(), server, w)
		}
		var exit exitError
		if err == nil || errors.As(err, &exit) {
			return err
		}
		return fmt.Errorf("cannot %s %s: %w", verb, args[0], err)
	}
}

// How long a test waits for its delivery's first try, and how often it looks.
const (
	testWait = 15 * time.Second
	testPoll = 100 * time.Millisecond
)

func (c *cli) webhookTestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "test WEBHOOK", Short: "Send a webhook a test, and show what its receiver says", Args: oneArg("webhook"),
		ValidArgsFunction: c.completeWebhooks,
		RunE: c.onWebhook("test", func(ctx context.Context, server *client.Client, w api.Webhook) error {
			defer c.progress("testing " + w.ID)()
			d, err := server.TestWebhook(ctx, w.ID)
			if err == nil {
				d, err = awaitTry(ctx, server, d)
			}
			if err != nil {
				return err
			}
			return c.showTest(d)
		}),
	}
}

// awaitTry returns the delivery once it was tried.
func awaitTry(ctx context.Context, server *client.Client, d api.Delivery) (api.Delivery, error) {
	ctx, cancel := context.WithTimeout(ctx, testWait)
	defer cancel()
	tick := time.NewTicker(testPoll)
	defer tick.Stop()
	for {
		list, err := server.WebhookDeliveries(ctx, d.WebhookID, "")
		if err != nil {
			return d, err
		}
		at := slices.IndexFunc(list, func(other api.Delivery) bool { return other.ID == d.ID })
		if at >= 0 && list[at].Attempts > 0 {
			return list[at], nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return d, errors.New("it was not tried within " + testWait.String())
		}
	}
}

func (c *cli) showTest(d api.Delivery) error {
	if d.State == api.DeliveryDelivered {
		return c.printOne(d, func() { fmt.Fprintf(c.out, "delivered: the receiver answered %d\n", d.StatusCode) })
	}
	return hint(errors.New(d.Error), "it is tried again at %s; see: hatch webhook deliveries %s", nextTry(c, d), d.WebhookID)
}

func nextTry(c *cli, d api.Delivery) string {
	if d.NextTryAt == nil {
		return ""
	}
	return c.clock(*d.NextTryAt)
}

func (c *cli) webhookDeliveriesCommand() *cobra.Command {
	var state string
	states := []string{api.DeliveryPending, api.DeliveryDelivered, api.DeliveryFailed}
	cmd := &cobra.Command{
		Use: "deliveries WEBHOOK", Short: "List what was sent to a webhook, newest first", Args: oneArg("webhook"),
		ValidArgsFunction: c.completeWebhooks,
		RunE: c.onWebhook("list the deliveries of", func(ctx context.Context, server *client.Client, w api.Webhook) error {
			list, err := server.WebhookDeliveries(ctx, w.ID, state)
			if err != nil {
				return err
			}
			return printList(c, list, func(wide bool) table { return c.deliveryTable(list, wide) })
		}),
	}
	cmd.Flags().StringVar(&state, "state", "", "only "+strings.Join(states, ", ")+" ones")
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (c *cli) deliveryTable(list []api.Delivery, wide bool) table {
	t := table{head: []string{"ID", "EVENT", "STATE", "TRIES", "STATUS", "NEXT TRY", "AGE", "ERROR"}}
	if wide {
		t.head = append(t.head, "EVENT ID", "SEQ")
	}
	for _, d := range list {
		status := ""
		if d.StatusCode != 0 {
			status = strconv.Itoa(d.StatusCode)
		}
		cells := []string{d.ID, d.EventType, d.State, strconv.Itoa(d.Attempts), status, nextTry(c, d), c.age(d.CreatedAt), d.Error}
		if wide {
			cells = append(cells, d.EventID, strconv.FormatInt(d.EventSeq, 10))
		}
		t.row(cells...)
	}
	return t
}

func (c *cli) webhookRetryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "retry WEBHOOK DELIVERY", Short: "Deliver anew", ValidArgsFunction: c.completeWebhooks,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usage(cmd, "%s takes a webhook and a delivery; %d were given", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.onWebhook("retry a delivery of", func(ctx context.Context, server *client.Client, w api.Webhook) error {
				d, err := server.RetryDelivery(ctx, w.ID, args[1])
				if err != nil {
					return err
				}
				return c.printOne(d, func() { fmt.Fprintln(c.out, d.ID) })
			})(cmd, args)
		},
	}
}
