package main

// The types below are the part of Grafana's classic dashboard model that the dashboard uses, see
// https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/

type dashboard struct {
	Title         string          `json:"title"`
	UID           string          `json:"uid"`
	Description   string          `json:"description"`
	Tags          []string        `json:"tags"`
	SchemaVersion int             `json:"schemaVersion"`
	Editable      bool            `json:"editable"`
	GraphTooltip  int             `json:"graphTooltip"` // 1: a crosshair in all panels
	Refresh       string          `json:"refresh"`
	Time          timeRange       `json:"time"`
	Annotations   listOf[any]     `json:"annotations"`
	Templating    listOf[any]     `json:"templating"`
	Panels        []*panel        `json:"panels"`
	Links         []dashboardLink `json:"links"`
}

type timeRange struct {
	From string `json:"from"`
	To   string `json:"to"`
}

type listOf[T any] struct {
	List []T `json:"list"`
}

type dashboardLink struct {
	Title       string `json:"title"`
	Type        string `json:"type"`
	URL         string `json:"url"`
	TargetBlank bool   `json:"targetBlank"`
}

type datasource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// fromVariable is the data source that the user chooses.
var fromVariable = datasource{Type: "prometheus", UID: "${datasource}"}

type annotation struct {
	Name        string     `json:"name"`
	Datasource  datasource `json:"datasource"`
	Enable      bool       `json:"enable"`
	IconColor   string     `json:"iconColor"`
	Expr        string     `json:"expr"`
	Step        string     `json:"step"`
	TitleFormat string     `json:"titleFormat"`
	TextFormat  string     `json:"textFormat"`
}

type variable struct {
	Name       string      `json:"name"`
	Label      string      `json:"label"`
	Type       string      `json:"type"`
	Datasource *datasource `json:"datasource,omitempty"`
	Query      any         `json:"query"`
	Definition string      `json:"definition,omitempty"`
	Regex      string      `json:"regex"`
	Refresh    int         `json:"refresh"` // 1: when the dashboard is loaded, 2: when the time range changes
	Sort       int         `json:"sort"`    // 0: as in the answer, 1: by the alphabet
	Multi      bool        `json:"multi"`
	IncludeAll bool        `json:"includeAll"`
	AllValue   string      `json:"allValue,omitempty"`
}

type variableQuery struct {
	Query string `json:"query"`
	RefID string `json:"refId"`
}

type gridPos struct {
	H int `json:"h"`
	W int `json:"w"`
	X int `json:"x"`
	Y int `json:"y"`
}

type panel struct {
	ID              int              `json:"id"`
	Type            string           `json:"type"`
	Title           string           `json:"title"`
	Description     string           `json:"description,omitempty"`
	Datasource      *datasource      `json:"datasource,omitempty"`
	GridPos         gridPos          `json:"gridPos"`
	Interval        string           `json:"interval,omitempty"` // the shortest step
	FieldConfig     *fieldConfig     `json:"fieldConfig,omitempty"`
	Options         map[string]any   `json:"options,omitempty"`
	Targets         []target         `json:"targets,omitempty"`
	Transformations []transformation `json:"transformations,omitempty"`
	Collapsed       *bool            `json:"collapsed,omitempty"` // of a row
	Panels          []*panel         `json:"panels,omitempty"`    // of a collapsed row
}

type fieldConfig struct {
	Defaults  fieldDefaults `json:"defaults"`
	Overrides []override    `json:"overrides"`
}

type fieldDefaults struct {
	Unit       string         `json:"unit"`
	Decimals   *int           `json:"decimals,omitempty"`
	Min        *float64       `json:"min,omitempty"`
	Max        *float64       `json:"max,omitempty"`
	NoValue    string         `json:"noValue,omitempty"`
	Color      map[string]any `json:"color"`
	Thresholds thresholds     `json:"thresholds"`
	Custom     map[string]any `json:"custom,omitempty"`
}

type thresholds struct {
	Mode  string `json:"mode"`
	Steps []step `json:"steps"`
}

// A step is the color of values from Value on, or of the lowest ones if Value is nil.
type step struct {
	Color string   `json:"color"`
	Value *float64 `json:"value"`
}

type override struct {
	Matcher    matcher    `json:"matcher"`
	Properties []property `json:"properties"`
}

type matcher struct {
	ID      string `json:"id"`
	Options string `json:"options"`
}

type property struct {
	ID    string `json:"id"`
	Value any    `json:"value"`
}

type target struct {
	RefID        string     `json:"refId"`
	Datasource   datasource `json:"datasource"`
	Expr         string     `json:"expr"`
	LegendFormat string     `json:"legendFormat"`
	Instant      bool       `json:"instant"`
	Range        bool       `json:"range"`
	Format       string     `json:"format,omitempty"`
}

type transformation struct {
	ID      string `json:"id"`
	Options any    `json:"options"`
}

type link struct {
	Title       string `json:"title"`
	URL         string `json:"url"`
	TargetBlank bool   `json:"targetBlank,omitempty"`
}

// A limit is where a color begins.
type limit struct {
	from  float64
	color string
}

// used are the thresholds of the alerts on utilization.
var used = []limit{{0.5, "yellow"}, {0.8, "orange"}, {0.98, "red"}}

// steps returns thresholds that begin with a color.
func steps(base string, limits []limit) thresholds {
	t := thresholds{Mode: "absolute", Steps: []step{{Color: base}}}
	for _, l := range limits {
		t.Steps = append(t.Steps, step{Color: l.color, Value: &l.from})
	}
	return t
}

// newPanel returns a panel of a type, w of 24 columns wide.
func newPanel(kind, title, description, unit string, w, h int) *panel {
	p := &panel{
		Type: kind, Title: title, Description: description, Datasource: &fromVariable,
		GridPos: gridPos{W: w, H: h},
		FieldConfig: &fieldConfig{
			Defaults:  fieldDefaults{Unit: unit, Color: map[string]any{"mode": "palette-classic"}, Thresholds: steps("green", nil), Custom: map[string]any{}},
			Overrides: []override{},
		},
	}
	if unit == ports {
		p.FieldConfig.Defaults.Decimals = new(int)
	}
	return p
}

// Units of Grafana. ports are whole numbers: with "short", 8080 would read as 8.08 K.
const (
	ports   = "none"
	ratio   = "percentunit"
	seconds = "s"
	memory  = "bytes"
)

// query adds a query.
func (p *panel) query(expr, legend string) *panel {
	p.Targets = append(p.Targets, target{
		RefID: string(rune('A' + len(p.Targets))), Datasource: fromVariable, Expr: expr, LegendFormat: legend,
		Instant: p.Type != "timeseries", Range: p.Type == "timeseries",
	})
	if p.Type == "table" {
		p.Targets[len(p.Targets)-1].Format = "table"
	}
	return p
}

// override sets properties of the fields with a name.
func (p *panel) override(name string, properties ...property) *panel {
	p.FieldConfig.Overrides = append(p.FieldConfig.Overrides, override{Matcher: matcher{ID: "byName", Options: name}, Properties: properties})
	return p
}

// color gives a series a color.
func (p *panel) color(name, color string) *panel {
	return p.override(name, fixedColor(color))
}

func fixedColor(color string) property {
	return property{"color", map[string]any{"mode": "fixed", "fixedColor": color}}
}

// emptyCells is the text of cells without a value, where noValue is that of the whole table.
func (p *panel) emptyCells(text string) *panel {
	p.FieldConfig.Overrides = append(p.FieldConfig.Overrides, override{
		Matcher: matcher{ID: "byRegexp", Options: ".*"}, Properties: []property{{"noValue", text}},
	})
	return p
}

// noValue is the text that stands for no data.
func (p *panel) noValue(text string) *panel {
	p.FieldConfig.Defaults.NoValue = text
	return p
}

// newStat returns a panel of single numbers, of the color of their thresholds.
func newStat(title, description, unit string, w int, limits ...limit) *panel {
	p := newPanel("stat", title, description, unit, w, 4)
	p.FieldConfig.Defaults.Color = map[string]any{"mode": "thresholds"}
	p.FieldConfig.Defaults.Thresholds = statSteps(limits)
	p.FieldConfig.Defaults.Custom = nil
	p.Options = map[string]any{
		"colorMode": "background", "graphMode": "none", "justifyMode": "center", "textMode": "auto",
		"reduceOptions": map[string]any{"calcs": []string{"lastNotNull"}, "fields": "", "values": false},
	}
	return p
}

// statSteps returns thresholds that begin with green at 0. No data is not green.
func statSteps(limits []limit) thresholds {
	return steps("#6e7079", append([]limit{{0, "green"}}, limits...))
}

// newGraph returns a panel of lines. Limits are drawn as lines.
func newGraph(title, description, unit string, w int, limits ...limit) *panel {
	p := newPanel("timeseries", title, description, unit, w, 8)
	d := &p.FieldConfig.Defaults
	d.Min = new(float64)
	d.Custom = map[string]any{"drawStyle": "line", "lineWidth": 1, "fillOpacity": 5, "showPoints": "never", "spanNulls": false}
	if len(limits) > 0 {
		d.Thresholds = steps("transparent", limits)
		d.Custom["thresholdsStyle"] = map[string]any{"mode": "dashed"}
	}
	if unit != memory && unit != seconds {
		d.Custom["axisSoftMax"] = 1.0
	}
	p.Options = map[string]any{
		"legend":  map[string]any{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []string{}},
		"tooltip": map[string]any{"mode": "multi", "sort": "desc"},
	}
	return p
}

// named shows the name of each series. It puts the legend of a graph to the right, greatest values first: names of
// destinations are long.
func (p *panel) named() *panel {
	if p.Type == "stat" {
		p.Options["textMode"] = "value_and_name" // also of the only one
		return p
	}
	p.Options["legend"] = map[string]any{
		"displayMode": "table", "placement": "right", "showLegend": true, "calcs": []string{"lastNotNull"},
		"sortBy": "Last *", "sortDesc": true, "width": 340,
	}
	return p
}

// axisTo has the axis end at a value, or at the greatest one if that is greater.
func (p *panel) axisTo(value float64) *panel {
	p.FieldConfig.Defaults.Custom["axisSoftMax"] = value
	return p
}

// newBars returns a panel of stacked bars, one for each interval of at least a minute.
func newBars(title, description string, w int) *panel {
	p := newGraph(title, description, ports, w)
	p.Interval = "1m"
	p.FieldConfig.Defaults.Color = map[string]any{"mode": "shades", "fixedColor": "red"}
	p.FieldConfig.Defaults.Custom = map[string]any{
		"drawStyle": "bars", "lineWidth": 0, "fillOpacity": 80, "showPoints": "never", "barAlignment": -1, "axisSoftMax": 1.0,
		"stacking": map[string]any{"mode": "normal", "group": "A"},
	}
	return p
}

// stacked fills the areas between the lines.
func (p *panel) stacked() *panel {
	custom := p.FieldConfig.Defaults.Custom
	custom["stacking"] = map[string]any{"mode": "normal", "group": "A"}
	custom["fillOpacity"] = 60
	custom["lineWidth"] = 0
	return p
}

// An order sorts a table by a column.
type order struct {
	DisplayName string `json:"displayName"`
	Desc        bool   `json:"desc"`
}

// A column is a column of a table: a label of the series, or the value of a query.
type column struct {
	field      string // the name of the label, or empty
	query      string // else the query
	title      string
	properties []property
}

// newTable returns a table with a row for each combination of labels. Fields without a column are
// left out, and so are queries without a title. The first of the columns to sort by matters most.
func newTable(title, description string, h int, sortBy []order, columns ...column) *panel {
	p := newPanel("table", title, description, ports, 24, h)
	p.FieldConfig.Defaults.Custom = map[string]any{"align": "auto", "cellOptions": map[string]any{"type": "auto"}, "filterable": false}
	p.FieldConfig.Defaults.Thresholds = steps("text", nil)
	p.FieldConfig.Defaults.Color = map[string]any{"mode": "thresholds"}
	p.Options = map[string]any{"showHeader": true, "cellHeight": "sm", "sortBy": sortBy}
	queries := 0
	for _, c := range columns {
		if c.query != "" {
			queries++
		}
	}
	rename, index := map[string]string{}, map[string]int{}
	var keep []string
	for i, c := range columns {
		field := c.field
		if c.query != "" {
			p.query(c.query, "")
			// Grafana calls the only value of a table "Value".
			if field = "Value"; queries > 1 {
				field = "Value #" + p.Targets[len(p.Targets)-1].RefID
			}
		}
		if c.title == "" {
			continue
		}
		rename[field], index[field] = c.title, i
		keep = append(keep, field)
		if len(c.properties) > 0 {
			p.override(c.title, c.properties...)
		}
	}
	p.Transformations = []transformation{
		{ID: "merge", Options: map[string]any{}},
		{ID: "filterFieldsByName", Options: map[string]any{"include": map[string]any{"names": keep}}},
		{ID: "organize", Options: map[string]any{"excludeByName": map[string]bool{}, "indexByName": index, "renameByName": rename}},
	}
	return p
}

func unit(u string) property       { return property{"unit", u} }
func width(pixels int) property    { return property{"custom.width", pixels} }
func links(l ...link) property     { return property{"links", l} }
func mappings(m ...any) property   { return property{"mappings", m} }
func colored(l ...limit) property  { return property{"thresholds", steps("text", l)} }
func cell(kind string) property    { return property{"custom.cellOptions", map[string]any{"type": kind}} }
func decimals(digits int) property { return property{"decimals", digits} }

// usedBar shows a utilization as a bar and a number.
func usedBar(pixels int, l ...limit) []property {
	return []property{
		unit(ratio), {"min", 0}, {"max", 1}, decimals(1), width(pixels), {"thresholds", steps("green", l)},
		{"custom.cellOptions", map[string]any{"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}},
	}
}

// valueText maps values to texts.
func valueText(texts map[string]string) property {
	options := map[string]any{}
	for value, text := range texts {
		options[value] = map[string]any{"text": text}
	}
	return mappings(map[string]any{"type": "value", "options": options})
}

// A row is a title and the panels below it.
type row struct {
	title     string
	collapsed bool
	panels    []*panel
}

// layout places the panels of rows from left to right and from top to bottom, and numbers them.
func layout(rows []row) []*panel {
	var all []*panel
	y, id := 0, 0
	for _, r := range rows {
		id++
		head := &panel{ID: id, Type: "row", Title: r.title, GridPos: gridPos{Y: y, W: 24, H: 1}, Collapsed: &r.collapsed}
		all = append(all, head)
		top, x, h := y+1, 0, 0
		for _, p := range r.panels {
			id++
			p.ID = id
			if x+p.GridPos.W > 24 {
				top, x, h = top+h, 0, 0
			}
			p.GridPos.X, p.GridPos.Y = x, top
			x, h = x+p.GridPos.W, max(h, p.GridPos.H)
		}
		if r.collapsed {
			head.Panels = r.panels
			y++
			continue
		}
		all = append(all, r.panels...)
		y = top + h
	}
	return all
}
