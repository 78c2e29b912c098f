package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// kind is what images, templates and keys have in common: they are listed,
// found by a reference, shown and deleted.
type kind[T any] struct {
	noun     string
	short    string // of ls
	list     func(*client.Client, context.Context) ([]T, error)
	name     func(T) named
	table    func(things []T, wide bool) table
	find     func(context.Context, *client.Client, string) (T, error)
	get      func(*client.Client, context.Context, string) (T, error) // nil when there is no more to show
	remove   func(*client.Client, context.Context, string) error
	complete cobra.CompletionFunc
}

func lsOf[T any](c *cli, k kind[T]) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: k.short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			things, err := k.list(server, cmd.Context())
			if err != nil {
				return fmt.Errorf("cannot list %ss: %w", k.noun, err)
			}
			if quiet {
				printIDs(c, things, k.name)
				return nil
			}
			return printList(c, things, func(wide bool) table { return k.table(things, wide) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func inspectOf[T any](c *cli, k kind[T]) *cobra.Command {
	return &cobra.Command{
		Use: "inspect " + k.noun, Short: "Show all there is to know of " + withArticle(k.noun) + ", as JSON", Args: oneArg(k.noun),
		ValidArgsFunction: k.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			found, err := k.find(cmd.Context(), server, args[0])
			if err == nil {
				found, err = k.get(server, cmd.Context(), k.name(found).id)
			}
			if err != nil {
				return fmt.Errorf("cannot inspect %s: %w", args[0], err)
			}
			return c.printInspected(cmd, found)
		},
	}
}

func rmOf[T any](c *cli, k kind[T]) *cobra.Command {
	return &cobra.Command{
		Use: "rm " + k.noun + "...", Aliases: []string{"delete"}, Short: "Delete " + k.noun + "s", Args: someArgs(k.noun),
		ValidArgsFunction: k.complete,
		RunE: func(cmd *cobra.Command, refs []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			failed := false
			for _, ref := range refs {
				if err := removeOne(cmd.Context(), server, k, ref); err != nil {
					c.report(fmt.Errorf("cannot remove %s: %w", ref, err))
					failed = true
					continue
				}
				if err := c.showRemoved(ref, api.VM{}); err != nil {
					return err
				}
			}
			if failed {
				return exitError(exitOwn)
			}
			return nil
		},
	}
}

func removeOne[T any](ctx context.Context, server *client.Client, k kind[T], ref string) error {
	found, err := k.find(ctx, server, ref)
	if err != nil {
		return err
	}
	return k.remove(server, ctx, k.name(found).id)
}

// withArticle puts a noun behind a or an.
func withArticle(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}
