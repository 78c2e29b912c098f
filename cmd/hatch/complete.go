package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/client"
)

// completeTimeout bounds what a press of the tab key may cost.
const completeTimeout = 2 * time.Second

func (c *cli) completeVMs(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.suggest(cmd, func(ctx context.Context, server *client.Client) ([]suggestion, error) {
		vms, err := allVMs(ctx, server, client.ListOptions{})
		var found []suggestion
		for _, v := range vms {
			found = append(found, suggestion{vmName(v), v.State})
		}
		return found, err
	})
}

// completeVMFirst offers VMs as the first argument, and nothing after it.
func (c *cli) completeVMFirst(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completeVMs(cmd, args, word)
}

func (c *cli) completeImages(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.suggest(cmd, func(ctx context.Context, server *client.Client) ([]suggestion, error) {
		images, err := server.ListImages(ctx)
		return suggestions(images, imageName), err
	})
}

func (c *cli) completeTemplates(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.suggest(cmd, func(ctx context.Context, server *client.Client) ([]suggestion, error) {
		templates, err := server.ListTemplates(ctx)
		return suggestions(templates, templateName), err
	})
}

func (c *cli) completeKeys(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.suggest(cmd, func(ctx context.Context, server *client.Client) ([]suggestion, error) {
		keys, err := server.ListKeys(ctx)
		return suggestions(keys, keyName), err
	})
}

// suggestion is one thing that can be named on the command line.
type suggestion struct {
	named
	about string
}

func suggestions[T any](things []T, name func(T) named) []suggestion {
	found := make([]suggestion, len(things))
	for i, t := range things {
		found[i] = suggestion{named: name(t)}
	}
	return found
}

// suggest offers names, or ids where there are none. A server that does not
// answer offers nothing: completion is no place for errors.
func (c *cli) suggest(cmd *cobra.Command, ask func(context.Context, *client.Client) ([]suggestion, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	server, err := c.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found, err := ask(ctx, server)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	words := make([]cobra.Completion, 0, len(found))
	for _, f := range found {
		word, about := f.id, f.about
		if f.name != "" {
			word, about = f.name, f.id+" "+f.about
		}
		words = append(words, cobra.CompletionWithDesc(clean(word), clean(about)))
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}
