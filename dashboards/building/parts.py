"""What the dashboards are made of: panels that cannot be made without a unit and a description, and their variables.

The kit writes Grafana 10's form, which later Grafanas bring up to date when they load it. Colours are named, so that
each theme shows its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as boards
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
NO_DATA = "no data"
RUNBOOKS = "docs/runbooks"
"""Where runbooks are in this repository: what is replaced by where they can be read."""
LOAD = ((0.8, "orange"), (1.0, "red"))
"""From where on a load ratio is coloured."""
USAGE = ((0.9, "orange"), (0.95, "red"))
"""From where on the occupancy of a pool is coloured; at the last one the alert on pressure begins."""
PODS = 'namespace=~"$namespace",pod=~"$pod"'
MODELS = PODS + ',model=~"$model"'

Panel = stat.Panel | timeseries.Panel | table.Panel


@dataclass(frozen=True, slots=True)
class Query:
    """One question to Prometheus and how its answers are named."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """What each panel says of itself. `bad` are (from value, colour), in rising order; below the first is `base`."""

    title: str
    description: str
    unit: str
    runbook: str
    bad: Sequence[tuple[float, str]] = ()
    base: str = "green"


@dataclass(slots=True)
class Numbering:
    """Panel ids, unique within a dashboard."""

    last: int = 0

    def next(self) -> int:
        self.last += 1
        return self.last


def figure(about: About, *queries: Query, span: int = 4, by_name: bool = False, yes_or_no: bool = False) -> stat.Panel:
    """One figure of now, or one for each query that has data: all but the first without a colour. With `by_name` the
    series' names instead of their values, with `yes_or_no` words for 1 and 0."""
    panel = stat.Panel().graph_mode(common.BigValueGraphMode.NONE).height(4)
    panel.color_mode(common.BigValueColorMode.VALUE if about.bad else common.BigValueColorMode.NONE)
    panel.text_mode(common.BigValueTextMode.NAME if by_name else common.BigValueTextMode.AUTO)
    panel.reduce_options(common_builders.ReduceDataOptions().values(False).calcs(["lastNotNull"]))
    if yes_or_no:
        words = {str(value): dashboard.ValueMappingResult(text=text) for value, text in enumerate(("no", "yes"))}
        panel.mappings([dashboard.ValueMap(options=words)])
    for index, query in enumerate(queries):
        panel.with_target(_target(query, index).instant())
        if index:
            plain: list[dict[str, object]] = [{"color": "text", "value": None}]
            properties = [dashboard.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": plain})]
            panel.override_by_name(query.legend, properties)
    _describe(panel, about, span)
    return panel


def lines(about: About, *queries: Query, span: int = 12, stacked: bool = False, right: str = "") -> timeseries.Panel:
    """Series over time, never joined over a gap; the series that `right` matches have the axis on the right."""
    panel = timeseries.Panel().height(8).span_nulls(False).fill_opacity(30 if stacked else 0).line_width(1)
    panel.show_points(common.VisibilityMode.AUTO)
    panel.legend(
        common_builders.VizLegendOptions()
        .show_legend(True)
        .display_mode(common.LegendDisplayMode.TABLE)
        .placement(common.LegendPlacement.BOTTOM)
        .calcs(["lastNotNull", "max"])
    )
    panel.tooltip(
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if about.bad:
        panel.thresholds_style(common_builders.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED))
    if right:
        panel.override_by_regexp(
            right,
            [
                dashboard.DynamicConfigValue("custom.axisPlacement", "right"),
                dashboard.DynamicConfigValue("unit", "short"),
            ],
        )
    for index, query in enumerate(queries):
        panel.with_target(_target(query, index).range())
    _describe(panel, about, span)
    return panel


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: what is asked, its heading, its unit, and from where on it is coloured."""

    expr: str
    heading: str
    unit: str
    bad: Sequence[tuple[float, str]] = ()


def listing(about: About, *columns: Column, span: int = 24, link: tuple[str, str] | None = None) -> table.Panel:
    """A row for each set of labels that the columns share. `link` is a column of labels and where it leads."""
    panel = table.Panel().height(9).show_header(True)
    hidden = {"Time": True, **{f"Time {index + 1}": True for index in range(len(columns))}}
    names = {}
    for index, column in enumerate(columns):
        panel.with_target(_target(Query(column.expr), index).instant().format(PromQueryFormat.TABLE))
        names[f"Value #{_ref(index)}" if len(columns) > 1 else "Value"] = column.heading
        properties = [dashboard.DynamicConfigValue("unit", column.unit)]
        if column.bad:
            steps: list[dict[str, object]] = [{"color": "green", "value": None}]
            steps += [{"color": color, "value": value} for value, color in column.bad]
            properties += [
                dashboard.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": steps}),
                dashboard.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ]
        panel.override_by_name(column.heading, properties)
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize", options={"excludeByName": hidden, "indexByName": {}, "renameByName": names}
        )
    )
    if link is not None:
        by, url = link
        value = [{"title": "Open", "url": url, "targetBlank": False}]
        panel.override_by_name(by, [dashboard.DynamicConfigValue("links", value)])
    _describe(panel, about, span)
    return panel


def board(name: str, title: str, description: str, *, one_pod: bool = False) -> boards.Dashboard:
    """An empty dashboard with what all have: variables, links to the others, half a minute between looks."""
    made = boards.Dashboard(title).uid(f"kvgauge-{name}").description(description).tags(["kvgauge"]).readonly()
    made.time("now-6h", "now").refresh("30s").timezone("browser")
    made.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    made.with_variable(boards.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    made.with_variable(_choice("namespace", "Namespace", "label_values(kvgauge_build_info, namespace)"))
    made.with_variable(_choice("model", "Model", 'label_values(kvgauge_engine_info{namespace=~"$namespace"}, model)'))
    of_model = 'label_values(kvgauge_engine_info{namespace=~"$namespace",model=~"$model"}, pod)'
    made.with_variable(_choice("pod", "Pod", of_model, many=not one_pod))
    made.with_variable(
        boards.TextBoxVariable("runbooks")
        .label("Runbooks at")
        .description("Where this repository's docs/runbooks can be read, without a slash at the end.")
        .default_value(RUNBOOKS)
    )
    made.link(
        boards.DashboardLink("kvgauge")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags(["kvgauge"])
        .include_vars(True)
        .keep_time(True)
    )
    return made


def number(name: str, label: str, default: str, description: str) -> boards.TextBoxVariable:
    """A number that the reader of the dashboard may set."""
    return boards.TextBoxVariable(name).label(label).default_value(default).description(description)


def fill(made: boards.Dashboard, rows: Sequence[tuple[str, Sequence[Panel]]]) -> boards.Dashboard:
    """The dashboard with its rows of panels."""
    ids = Numbering()
    for title, panels in rows:
        made.with_row(boards.Row(title).id(ids.next()))
        for panel in panels:
            made.with_panel(panel.id(ids.next()))
    return made


def _choice(name: str, label: str, query: str, *, many: bool = True) -> boards.QueryVariable:
    made = boards.QueryVariable(name).label(label).datasource(SOURCE)
    made.query({"query": query, "refId": f"kvgauge-{name}"})
    made.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    if many:
        made.multi(True).include_all(True)
        made.current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return made


def _describe(panel: Panel, about: About, span: int) -> None:
    panel.title(about.title).description(about.description).unit(about.unit).span(span)
    panel.datasource(SOURCE).no_value(NO_DATA)
    steps = [dashboard.Threshold(value=None, color=about.base if about.bad else "text")]
    steps += [dashboard.Threshold(value=value, color=color) for value, color in about.bad]
    panel.thresholds(boards.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
    panel.links(
        [
            boards.DashboardLink("Runbook")
            .type(dashboard.DashboardLinkType.LINK)
            # As it is: some Grafanas would encode its slashes.
            .url(f"${{runbooks:raw}}/{about.runbook}.md")
            .target_blank(True)
        ]
    )


def _target(query: Query, index: int) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expr).ref_id(_ref(index)).datasource(SOURCE)
    return made.legend_format(query.legend or "__auto")


def _ref(index: int) -> str:
    return chr(ord("A") + index)
