package httpapi

import (
	"context"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/template"
)

// Templates manages templates. [template.Service] implements it.
type Templates interface {
	// Create stores t, whose ID, OwnerID and times it fills in.
	Create(ctx context.Context, owner string, t template.Template) (template.Template, error)
	Template(ctx context.Context, scope access.Scope, id string) (template.Template, error)
	List(ctx context.Context, scope access.Scope) ([]template.Template, error)
	Delete(ctx context.Context, scope access.Scope, id string) error
}

type templateHandlers struct {
	*door
	templates Templates
}

type createTemplateInput struct {
	Body api.CreateTemplate
}

func (h *templateHandlers) create(ctx context.Context, in *createTemplateInput) (*created[api.Template], error) {
	given, err := overrides(in.Body.MachineSpec)
	if err != nil {
		return nil, err
	}
	t, err := h.templates.Create(ctx, owner(ctx), template.Template{Name: in.Body.Name, Overrides: given})
	if err != nil {
		return nil, err
	}
	return &created[api.Template]{Location: "/templates/" + t.ID, Body: wholeTemplate(t)}, nil
}

type listTemplatesOutput struct {
	Body []api.Template `nullable:"false"`
}

func (h *templateHandlers) list(ctx context.Context, _ *struct{}) (*listTemplatesOutput, error) {
	templates, err := h.templates.List(ctx, scope(ctx))
	if err != nil {
		return nil, err
	}
	out := &listTemplatesOutput{Body: make([]api.Template, len(templates))}
	for i, t := range templates {
		out.Body[i] = wholeTemplate(t)
		out.Body[i].UserData, out.Body[i].UserDataEncoding = nil, "" // it may hold secrets
	}
	return out, nil
}

func (h *templateHandlers) get(ctx context.Context, in *IDPath) (*answer[api.Template], error) {
	t, err := h.templates.Template(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Template]{Body: wholeTemplate(t)}, nil
}

func (h *templateHandlers) delete(ctx context.Context, in *IDPath) (*answer[api.Deleted], error) {
	if err := h.templates.Delete(ctx, scope(ctx), in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

func wholeTemplate(t template.Template) api.Template {
	return api.Template{
		ID:             t.ID,
		CreateTemplate: api.CreateTemplate{Name: t.Name, MachineSpec: shownOverrides(t.Overrides)},
		CreatedAt:      utc(t.CreatedAt), UpdatedAt: utc(t.UpdatedAt),
	}
}
