"""Small templates on which nibble and jinja2 must agree: the text, or that both refuse.

One a line; `\\n` inside a Python escape stands for a line end in the source where a case needs several lines.
"""

VARIABLES = {
    "d": {"a": 1, "b": "x", "nested": {"k": "v", "list": [1, {"z": 2}]}},
    "l": ["a", "b", "c"],
    "s": "hello world",
    "u": "héllo 世界 ß",
    "shadow": {"items": 5},
}

LINES = r"""
{{ 1 }} {{ 1.0 }} {{ 1e16 }} {{ 1e15 }} {{ 1.5e-5 }} {{ 0.0001 }} {{ 123456789012345.6 }} {{ 1e100 }} {{ 100000.0 }}
{{ true }} {{ false }} {{ none }} {{ True }} {{ None }}
{{ [1, 'a', None, true, 1.5, [], {}, (1,), (), (1,2)] }}
{{ {'a': 1, 'b': [1,2], 3: None, 'q': "it's", 'dq': 'say "hi"', 'both': '\'"'} }}
{{ ['\n\t\r\\', '\x00\x7f', 'é世🎉', '\u200b', '\xa0', '\u2028'] }}
{{ 7 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % 2 }} {{ -7.5 // 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 4 / 2 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 1.0 / 0 }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1] }}
{{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ [1] * 2 }} {{ 'a' * -1 }}|
{{ (1, 2) * 2 }} {{ [1] + [2] }} {{ (1,) + (2,) }}
{{ [1] + (2,) }}
{{ true + 1 }} {{ true + true }} {{ -true }} {{ not true }}
{{ 1 == 1.0 }} {{ 1 == true }} {{ 'a' == 'a' }} {{ [1,2] == [1,2] }} {{ [1] == (1,) }} {{ {'a':1} == {'a':1.0} }} {{ none == none }} {{ none == false }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ [1,2] < [1,3] }} {{ 1 <= 1.0 }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ [1] < (1,) }}
{{ {} < {} }}
{{ 'a' in 'abc' }} {{ 1 in [1,2] }} {{ 'k' in {'k':1} }} {{ 3 not in (1,2) }} {{ '' in 'a' }}
{{ 1 in 'abc' }}
{{ 1 in 5 }}
{{ 'a' in none }}
{{ x }}|{{ x is defined }}|{{ x is undefined }}|{{ not x }}|{{ x ~ 'a' }}|{{ x|default('d') }}|{{ x or 'or' }}
{{ x.y }}
{{ x['y'] }}
{{ x + 1 }}
{{ 1 + x }}
{{ 'a' + x }}
{{ x < 1 }}
{{ x() }}
{{ -x }}
{{ x|length }} {{ x|list }} {{ x|join(',') }} {{ x|upper }}| {{ x|trim }}| {{ x|string }}| {{ x|first }}|{{ x == y }} {{ x != 1 }} {{ 'a' in x }}
{{ x in 'abc' }}
{{ x in [1] }}
{{ x|int }}
{{ x|float }}
{{ x|tojson }}
{{ x|last }}
{{ x|sort }} {{ x|unique|list }} {{ x|map('upper')|list }} {{ x|select|list }} {{ x|sum }} {{ x|items|list }}|
{{ x|dictsort }}
{{ x|abs }}
{{ x|round }}
{{ x|replace('a','b') }}|{{ x|indent }}
{{ x|title }}|{{ x|capitalize }}|{{ x|escape }}|{{ x|safe }}|{{ x|wordcount }}|{{ x|min }}|{{ x|max }}|{{ x|center(5) }}|
{{ x is string }} {{ x is none }} {{ x is mapping }} {{ x is iterable }} {{ x is sequence }} {{ x is number }} {{ x is callable }} {{ x is true }} {{ x is sameas none }}
{% for i in x %}a{% else %}empty{% endfor %}
{% for i in none %}a{% endfor %}
{% for i in 5 %}a{% endfor %}
{{ d.a }} {{ d['a'] }} {{ d.missing }}| {{ d.get('a') }} {{ d.get('zz') }} {{ d.get('zz', 5) }} {{ d.items() }} {{ d.keys() }} {{ d.values() }} {{ d.items()|list }} {{ d|length }} {{ d|list }}
{{ d.missing.x }}
{{ d.items()[0] }}|
{{ d.get() }}
{{ d.get('a', 'b', 'c') }}
{{ d.copy() }} {{ d|first }} {{ d|last }}
{{ l[0] }} {{ l[-1] }} {{ l[10] }}| {{ l[1:] }} {{ l[:-1] }} {{ l[::-1] }} {{ l[::2] }} {{ l[1:10] }} {{ l[-2:] }} {{ l[5:] }} {{ l[:0] }} {{ l[2:1] }} {{ l[-100:2] }} {{ l[100:-100:-1] }} {{ l[3:0:-2] }}
{{ l[::0] }}
{{ l['a'] }}|{{ l.foo }}|{{ l[none] }}|
{{ s[0] }} {{ s[-1] }} {{ s[1:3] }} {{ s[::-1] }} {{ s[100] }}| {{ s[-100:100:3] }}
{{ s|length }} {{ u|length }} {{ u[1] }} {{ u[1:3] }} {{ u[::-1] }} {{ u|upper }} {{ u|lower }} {{ u|title }} {{ u|capitalize }}
{{ d[1:2] }}
{{ x[1:] }}
{{ none.a }}|{{ none['a'] }}|{{ 1 .a }}|{{ (1).a }}|{{ 1.5.a }}|
{{ none.a.b }}
{{ s.upper() }} {{ s.title() }} {{ s.split() }} {{ 'a,b,,c'.split(',') }} {{ 'a,b,,c'.split(',', 1) }} {{ 'a,b,,c'.rsplit(',', 1) }} {{ '  a b  c '.split() }} {{ '  a b  c '.split(none, 1) }} {{ ' a b  c '.rsplit(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a'.split(sep='a') }} {{ 'a b'.split(maxsplit=0) }}
{{ 'a'.split('') }}
{{ 'a'.split(1) }}
{{ '  x '.strip() }}|{{ '  x '.lstrip() }}|{{ '  x '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xyaxy'.strip('yx') }}|{{ '\u3000é\u3000'.strip() }}|{{ 'é世é'.strip('é') }}|{{ '\x1ca\x85'.strip() }}|
{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x','a')) }} {{ 'abc'.endswith('c') }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.endswith('b', 0, 2) }} {{ 'abc'.startswith('') }} {{ 'abc'.startswith('', 4) }}
{{ 'abc'.startswith(['a']) }}
{{ 'abc'.find('c') }} {{ 'abc'.find('z') }} {{ 'é世c'.find('c') }} {{ 'abcabc'.rfind('b') }} {{ 'abc'.index('b') }} {{ 'abcabc'.count('b') }} {{ 'aaa'.count('aa') }} {{ 'abc'.count('') }} {{ 'abc'.find('', 5) }} {{ 'abc'.find('a', -2) }}
{{ 'abc'.index('z') }}
{{ 'abc'.replace('b', 'X') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'ab'.replace('', '-') }} {{ 'ab'.replace('', '-', 2) }} {{ 'é世'.replace('', '.') }}
{{ 'abc'.replace('b') }}
{{ 'abc'.replace(1, 2) }}
{{ 'a-b'.partition('-') }} {{ 'ab'.partition('-') }} {{ 'a-b-c'.rpartition('-') }} {{ 'ab'.rpartition('-') }}
{{ 'a\nb\r\nc\x0bd'.splitlines() }} {{ 'a\nb'.splitlines(true) }} {{ ''.splitlines() }} {{ '\n'.splitlines() }}
{{ ','.join(['a','b']) }} {{ ''.join('abc') }}
{{ ','.join([1]) }}
{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removesuffix('') }}
{{ 'a'.isalpha() }} {{ '1'.isdigit() }} {{ '²'.isdigit() }} {{ '²'.isdecimal() }} {{ 'a1'.isalnum() }} {{ ''.isalpha() }} {{ 'A'.isupper() }} {{ 'aB'.islower() }} {{ ' '.isspace() }} {{ 'Ab Cd'.istitle() }} {{ 'é'.isalpha() }} {{ 'é'.isascii() }}
{{ 'a'.center(5, '*') }} {{ 'ab'.center(5) }}| {{ 'abc'.center(6) }}| {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3, '0') }} {{ '-5'.zfill(5) }} {{ 'a\tb'.expandtabs() }} {{ 'a\tb'.expandtabs(4) }}
{{ 'ß'.upper() }} {{ 'ΑΣ'.lower() }} {{ 'ΑΣΑ Σ'.lower() }} {{ 'İ'.lower() }} {{ 'ǆ'.title() }} {{ 'they\'re bill\'s'.title() }} {{ "they're bill's"|title }} {{ 'foo-bar (baz) [x] {y} <z>'|title }} {{ 'ﬁ'.upper() }} {{ 'aBc'.swapcase() }} {{ 'hELLO wORLD'.capitalize() }}
{{ '{} {}'.format(1, 'a') }} {{ '{0} {1} {0}'.format(1, 2) }} {{ '{a} {b}'.format(a=1, b=2) }} {{ '{:>5}|{:<5}|{:^5}|{:*^5}'.format('a','b','c','d') }} {{ '{:.2f} {:05d} {:,} {:x} {:+d} {:%}'.format(3.14159, 42, 1234567, 255, 5, 0.25) }} {{ '{{}}'.format() }} {{ '{!r}'.format('a') }} {{ '{x.a} {x[a]}'.format(x={'a':1}) }} {{ '{0[1]}'.format([1,2]) }}
{{ '{}'.format() }}
{{ '{a}'.format() }}
{{ '{'.format() }}
{{ '%s %d %5.2f %r %x %%' % ('a', 5, 3.14159, 'b', 255) }} {{ '%s' % 'x' }} {{ '%s' % [1] }} {{ '%(a)s' % {'a': 1} }} {{ '%5s|%-5s|%05d|%+d' % ('a', 'b', 42, 5) }} {{ '%s'|format('z') }} {{ '%(k)s'|format(k=1) }} {{ '%c' % 65 }} {{ '%e' % 12345.678 }} {{ '%g' % 0.00001 }}
{{ '%s %s' % 'a' }}
{{ '%d' % 'a' }}
{{ '%s' % ('a', 'b') }}
{{ '%z' % 1 }}
{{ 'a' 'b' "c" }}
{{ '\x41\u00e9\101\q\'' }}
{{ 0x1F }} {{ 0b11 }} {{ 0o17 }} {{ 1_000 }} {{ 1_0.5_0 }} {{ 1e3 }} {{ 1E-3 }}
{{ 007 }}
{{ 1 if true else 2 }} {{ 1 if false else 2 }} {{ 1 if false }}| {{ 'a' if x is defined else 'b' }} {{ 1 if false else 2 if false else 3 }}
{{ (1 if false).x }}
{{ 1 and 2 }} {{ 0 and 2 }} {{ 0 or 'a' }} {{ '' or none }} {{ not 0 }} {{ not not 'a' }} {{ 1 and 0 or 3 }}
{{ not x is defined }} {{ not 1 == 2 }} {{ 1 is number and 2 is number }} {{ -1|abs }} {{ -1 is number }} {{ 2 + 3|string|length }} {{ (2 + 3)|string }} {{ 'a' ~ 'b'|upper }} {{ 2 * 3 ** 2 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 1 + 2 ~ 3 }} {{ 1 ~ 2 + 3 }}
{{ 3 is odd }} {{ 3 is even }} {{ 4 is divisibleby 2 }} {{ 4 is divisibleby(3) }} {{ 'a' is string }} {{ {} is mapping }} {{ [] is sequence }} {{ [] is iterable }} {{ none is none }} {{ true is boolean }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is float }} {{ 1 is eq 1 }} {{ 1 is ne 2 }} {{ 2 is gt 1 }} {{ 1 is in [1] }} {{ 1 is not in [1] }} {{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'a' is sameas 'a' }} {{ range is callable }} {{ 1 is true }} {{ true is true }} {{ 0 is false }} {{ false is false }} {{ 'upper' is filter }} {{ 'xx' is filter }} {{ 'odd' is test }} {{ 1 is == 1 }}
{{ 1 is eq(1) }} {{ 1 is equalto 1 }} {{ 1 is lessthan 2 }} {{ 1 is greaterthan 2 }} {{ 1 is ge 1 }} {{ 1 is le 1 }}
{{ 'a' is odd }}
{{ 1 is unknown_test }}
{{ 1|unknown_filter }}
{% if false %}{{ 1|unknown_filter }}{% endif %}ok
{% if true %}{{ 1|unknown_filter }}{% endif %}
{% if false %}{% for i in [1] %}{{ 1|unknown_filter }}{% endfor %}{% endif %}ok
{{ 1|unknown_filter if false else 2 }}
{{ 2 if true else 1|unknown_filter }}
{% if x is unknown_test %}{% endif %}ok
{{ [3,1,2]|sort }} {{ [3,1,2]|sort(reverse=true) }} {{ ['b','A','c']|sort }} {{ ['b','A','c']|sort(case_sensitive=true) }} {{ [{'a':2},{'a':1}]|sort(attribute='a') }} {{ [{'a':{'b':2}},{'a':{'b':1}}]|sort(attribute='a.b')|map(attribute='a.b')|list }}
{{ [1,'a']|sort }}
{{ [{'a':1,'b':2},{'a':1,'b':1}]|sort(attribute='a,b') }}
{{ {'b':1,'a':2}|dictsort }} {{ {'b':1,'a':2}|dictsort(by='value') }} {{ {'b':1,'a':2}|dictsort(reverse=true) }} {{ {'B':1,'a':2}|dictsort(true) }}
{{ [1,2,3]|first }} {{ [1,2,3]|last }} {{ 'abc'|first }} {{ 'abc'|last }} {{ []|first }}| {{ []|last }}|
{{ [1,2,3]|join }} {{ [1,2,3]|join(', ') }} {{ [{'a':1},{'a':2}]|join('-', attribute='a') }} {{ [1,none,true]|join(' ') }} {{ 'abc'|join('.') }} {{ [1,2]|join(3) }}
{{ [1,2,3]|sum }} {{ [{'a':1},{'a':2}]|sum(attribute='a') }} {{ [1.5,2]|sum }} {{ [1]|sum(start=10) }}
{{ ['a']|sum }}
{{ [1,2,3]|min }} {{ [1,2,3]|max }} {{ ['b','A']|min }} {{ ['b','A']|max }} {{ []|max }}|
{{ [1,1,2,'a','A']|unique|list }} {{ ['a','A']|unique(true)|list }} {{ [{'a':1},{'a':1}]|unique(attribute='a')|list }}
{{ [[1]]|unique|list }}
{{ [1,2,3,4,5]|batch(2)|list }} {{ [1,2,3]|batch(2, 'x')|list }} {{ [1,2,3,4,5]|slice(3)|list }} {{ [1,2,3,4]|slice(3, 'x')|list }}
{{ [{'k':'a','v':1},{'k':'b','v':2},{'k':'a','v':3}]|groupby('k') }} {% for k, v in [{'k':'a','v':1},{'k':'b','v':2},{'k':'a','v':3}]|groupby('k') %}{{ k }}={{ v|length }};{% endfor %}
{{ [1,2,3]|reverse|list }} {{ 'abc'|reverse }} {{ (1,2)|reverse|list }}
{{ ['a','b']|map('upper')|list }} {{ [{'a':1},{}]|map(attribute='a', default='d')|list }} {{ [{'a':1},{}]|map(attribute='a')|list }} {{ [[1,2],[3]]|map(attribute=0)|list }} {{ ['a']|map('replace','a','b')|list }} {{ [1,2]|map('string')|join }} {{ ['x']|map('indent', width=2)|list }}
{{ ['a']|map|list }}
{{ ['a']|map('nope')|list }}
{{ [1,0,2]|select|list }} {{ [1,2,3]|select('odd')|list }} {{ [1,2,3]|reject('odd')|list }} {{ [1,2,3]|select('gt', 1)|list }} {{ [{'a':1},{'a':2},{}]|selectattr('a')|list }} {{ [{'a':1},{'a':2}]|selectattr('a','equalto',1)|list }} {{ [{'a':1},{'a':2}]|rejectattr('a','equalto',1)|list }} {{ [{'a':1},{}]|selectattr('a','defined')|list }} {{ [{'a':{'b':1}}]|selectattr('a.b')|list }} {{ [1,2,3]|select('in',[1,2])|list }}
{{ ([1,2,3]|select('odd'))[0] }}|
{{ [1,2,3]|select('odd')|length }}
{% set g = [1,2]|map('string') %}{{ g|list }}{{ g|list }}
{{ 'abc'|select|list }} {{ [1,2,3]|select('odd')|first }}
{{ 'a b'|urlencode }} {{ 'é/?&='|urlencode }} {{ {'a':'b c','d':'é/'}|urlencode }} {{ 5|urlencode }}
{{ '<a href="x">\'&'|e }} {{ '<'|escape|escape }} {{ '<'|forceescape }} {{ '<'|safe }} {{ ('<'|safe) + '<' }} {{ '<' + ('<'|safe) }} {{ ('<'|safe) ~ '<' }} {{ ('a'|safe).upper() + '<' }} {{ ['<'|e] }}
{{ 'a\nb\n\nc'|indent }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\n\nb'|indent(2, blank=true) }}|{{ 'a\nb'|indent('>>') }}|{{ 'a\n'|indent }}|{{ ''|indent }}|{{ 'a\nb'|indent(width=1, first=true) }}
{{ 5|indent }}
{{ 'foo bar baz qux'|truncate(9) }} {{ 'foo bar baz qux'|truncate(9, true) }} {{ 'foo bar baz qux'|truncate(11) }} {{ 'foo bar baz qux'|truncate(9, false, '') }} {{ 'foo bar'|truncate(5, leeway=0) }}
{{ 'a b c_d é-x'|wordcount }} {{ 'abc'|center(9) }}| {{ '  x '|trim }}| {{ 'xxaxx'|trim('x') }}
{{ '5'|int }} {{ '5.7'|int }} {{ 'abc'|int }} {{ 'abc'|int(7) }} {{ '0x1F'|int(base=16) }} {{ '1F'|int(0, 16) }} {{ 5.9|int }} {{ none|int }} {{ true|int }} {{ ' 42 '|int }} {{ '1_000'|int }} {{ '-7'|int }} {{ '1e3'|int }} {{ []|int }} {{ '0b11'|int(base=2) }} {{ '0x1F'|int(base=0) }} {{ 'inf'|int }} {{ 'nan'|int }}
{{ '5.5'|float }} {{ 'abc'|float }} {{ 'abc'|float(1.5) }} {{ 5|float }} {{ ' 1e3 '|float }} {{ 'inf'|float }} {{ '-inf'|float }} {{ 'nan'|float }} {{ none|float }} {{ '1_0.5'|float }} {{ '.5'|float }} {{ '5.'|float }} {{ 'infinity'|float }} {{ '+5'|float }} {{ '0x10'|float }}
{{ 2.5|round }} {{ 3.5|round }} {{ 2.675|round(2) }} {{ 42.55|round(1) }} {{ 42.55|round(1, 'floor') }} {{ 42.55|round(1, 'ceil') }} {{ 5|round }} {{ 1234|round(-2) }} {{ 1250|round(-2) }} {{ 0.5|round }} {{ -2.5|round }} {{ 1e20|round }} {{ 1234.5|round(-2) }}
{{ 'a'|round }}
{{ 1|round(1, 'nope') }}
{{ -5|abs }} {{ -5.5|abs }} {{ true|abs }}
{{ 'a'|abs }}
{{ 'abc'|replace('b', 'x') }} {{ 'aaa'|replace('a','b',2) }} {{ 5|replace(5, 6) }} {{ 'abc'|replace('', '-') }}
{{ 'abc'|length }} {{ [1]|count }} {{ 5|string|length }} {{ [1,2]|string }}
{{ 5|length }}
{{ none|length }}
{{ 5|list }}
{{ none|default('a') }} {{ none|default('a', true) }} {{ ''|d('x', boolean=true) }} {{ x|default }}| {{ 0|default(5, true) }}
{{ none|upper }} {{ 5|upper }} {{ [1,'a']|upper }} {{ none|trim }} {{ 5|trim }} {{ true|lower }} {{ none|string }}
{{ 'x'|attr('upper') is callable }} {{ {'a':1}|attr('a') }}| {{ {'a':1}|attr('items') is callable }}
{{ d|tojson }} {{ l|tojson }} {{ 'é世🎉<>&\'"\n\t\x00\x7f\u2028\\/'|tojson }} {{ none|tojson }} {{ true|tojson }} {{ 1.0|tojson }} {{ 1e100|tojson }} {{ [1, (2, 3)]|tojson }} {{ {1: 2, none: 3, true: 4, 1.5: 5}|tojson }} {{ {}|tojson }} {{ []|tojson }} {{ [[]]|tojson(indent=2) }} {{ {'a': {'b': [1, {}]}}|tojson(indent=4) }} {{ [1]|tojson(indent=0) }} {{ [1, [2]]|tojson(indent='\t') }} {{ {'b':1,'a':2}|tojson(sort_keys=true) }} {{ 'é🎉'|tojson(ensure_ascii=true) }} {{ [1,{'a':2}]|tojson(separators=(',', ':')) }} {{ [1]|tojson(false, 2) }} {{ 'inf'|float|tojson }}
{{ range(3)|tojson }}
{{ d.items()|tojson }}
{{ {(1,2): 3}|tojson }}
{{ range(5) }} {{ range(5)|list }} {{ range(1, 10, 3)|list }} {{ range(5, 0, -2)|list }} {{ range(3)[1] }} {{ range(3)|length }} {{ 2 in range(3) }} {{ range(0, 10, 2) }} {{ range(3)[-1] }} {{ range(0)|list }}
{{ range(100001) }}
{{ range(1,2,0) }}
{{ range() }}
{{ range('a') }}
{{ range(10**9)|length }}
{{ dict(a=1, b=2) }} {{ dict([('a', 1)]) }} {{ dict({'a': 1}, b=2) }} {{ dict() }} {{ dict.fromkeys([1,2], 0) }}
{{ dict(1) }}
{{ {[1]: 2} }}
{{ {'a':1, 'a':2} }} {{ {1: 'a', true: 'b', 1.0: 'c'} }}
{% set ns = namespace(a=1, b='x') %}{{ ns.a }}{{ ns.b }}{% set ns.a = 5 %}{{ ns.a }}{{ ns.c }}|{{ ns['a'] }}{% for i in [1,2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}
{% set ns = namespace() %}{% set ns._x = 1 %}
{% set ns = namespace(_x=1) %}
{% set d2 = {} %}{% set d2.x = 1 %}
{% set nope.x = 1 %}
{% set a = 1 %}{% for i in [1,2] %}{{ a }}{% set a = a + i %}{{ a }}{% endfor %}{{ a }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d3) = [3, 4] %}{{ c }}{{ d3 }}{% set t = 1, 2 %}{{ t }}{% set t = 1, %}{{ t }}
{% set a, b = [1] %}
{% set a, b = [1,2,3] %}
{% set a, b = 5 %}
{% set x2 %}  block {{ 1 + 1 }} {% endset %}[{{ x2 }}]{% set y2 | upper | trim %} abc {% endset %}[{{ y2 }}]
{% if true %}{% set z = 1 %}{% endif %}{{ z }}{% if false %}{% set w = 1 %}{% endif %}{{ w is defined }}
{% for i in [1,2,3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}
{% for i in [1,2,3] %}{{ loop.cycle('a','b') }}{{ loop.changed(i // 2) }} {% endfor %}{{ loop }}
{% for i in [1,2,3,4] if i % 2 == 0 %}{{ i }}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% else %}none{% endfor %}
{% for i in [1,3] if i % 2 == 0 %}{{ i }}{% else %}none{% endfor %}
{% for i in [1,2,3,4,5] %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}{% for k in {'a':1} %}{{ k }}{% endfor %}{% for c in 'aé世' %}{{ c }}.{% endfor %}
{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [1] %}{% endfor %}
{% set ns = namespace(n=0) %}{% for i in range(10) if ns.n < 3 %}{% set ns.n = ns.n + 1 %}{{ i }}{% endfor %}
{% for i in range(3) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }}{% endfor %}
{% for item in [{'n':'a','c':[{'n':'b','c':[]}]}] recursive %}{{ item.n }}{{ loop.depth }}{% if item.c %}({{ loop(item.c) }}){% endif %}{% endfor %}
{% for i in [1] %}{{ loop(1) }}{% endfor %}
{% for i in [] %}{% else %}{{ loop }}e{% endfor %}
{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(1, c='y') }} {{ m(a=5) }} {{ m() }} {{ m.name }} {{ m.arguments }} {{ m }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, z=2) }}
{% macro m(a) %}{{ a.b }}{% endmacro %}{{ m() }}
{% macro m(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }} {{ m.catch_varargs }} {{ m.catch_kwargs }} {{ m.caller }}
{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(7) }}
{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}inner{% endcall %}
{% macro m() %}[{{ caller('x', 1) }}]{% endmacro %}{% call(a, b) m() %}{{ a }}{{ b }}{% endcall %}
{% macro m() %}{{ caller }}{% endmacro %}{{ m() }}|
{% macro m() %}x{% endmacro %}{% call m() %}inner{% endcall %}
{% macro m() %}{% set q = 1 %}{{ q }}{% endmacro %}{{ m() }}{{ q }}|{% set q = 2 %}{{ m() }}{{ q }}
{% macro outer() %}{{ y1 }}{% endmacro %}{% set y1 = 1 %}{{ outer() }}{% set y1 = 2 %}{{ outer() }}
{% for i in [1,2] %}{% macro f() %}{{ i }}{% endmacro %}{{ f() }}{% endfor %}
{% macro f() %}{{ v0 }}{% endmacro %}{% for v0 in [1] %}{{ f() }}|{% endfor %}
{% macro fac(n) %}{% if n > 0 %}{{ n }}{{ fac(n - 1) }}{% endif %}{% endmacro %}{{ fac(5) }}
{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*[1,2]) }} {{ m(**{'a':1,'b':2}) }} {{ m(1, *[2]) }} {{ m(*[1], **{'b':2}) }}
{{ dict(a=1, **{'a': 2}) }}
{% filter upper %}abc{{ 'd' }}{% endfilter %} {% filter replace('a','b')|upper %}aaa{% endfilter %}
{% filter length %}abc{% endfilter %}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}| {% set a = 5 %}{% with a = 1, b = a %}{{ b }}{% endwith %}
{% raw %}{{ x }}{% if %}{% endraw %}| {%- raw %} a {% endraw -%} b {% raw -%} c {%- endraw %}
{# comment {{ x }} #}a{#- c -#} b
a {%- if true -%} b {%- endif -%} c
a {{- 1 -}} b {{ 2 }} c
{%+ if true %} a{% endif +%}
{% generation %}abc{% set gg = 1 %}{% endgeneration %}{{ gg is defined }}
{% block foo %}b{{ d.a }}{% endblock %} {% block bar scoped %}c{% endblock bar %}
{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}{% if 0 %}a{% elif 2 %}b{% else %}c{% endif %}{% if 0 %}a{% elif 0 %}b{% else %}c{% endif %}
{{ raise_exception('boom é') }}
{% include 'x' %}
{% extends 'x' %}
{% import 'x' as y %}
{% do 1 %}
{% nope %}
{% if %}{% endif %}
{% if true %}
{% for i in [1] %}
{% for %}{% endfor %}
{{ }}
{{ 1 + }}
{{ (1 }}
{{ 1) }}
{{ [1, }}
{{ 'abc }}
{{ a b }}
{{ 1 is string is number }}
{{ {1} }}
{{ {'a' 1} }}
{{ f(a=1, 2) }}
{{ @ }}
{# unclosed
{% raw %} unclosed
{% set 1 = 2 %}
{% set true = 2 %}
{% set x.y.z = 2 %}
{% set x['a'] = 2 %}
{% macro m(a=1, b) %}{% endmacro %}
{% macro true() %}{% endmacro %}
{% for loop in [1] %}{% endfor %}
{% break %}
{% for i in [1] %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}
{% call 1 %}{% endcall %}
{% else %}
{{ s.__class__ }}|{{ s['__class__'] }}|{{ s.__class__ is defined }}
{{ s.__class__.__mro__ }}
{{ l.append(1) }}
{{ l.append }}|{{ d.update }}|
{{ d.update({'a': 1}) }}
{{ d.pop('a') }}
{{ l.sort() }}
{{ l.index('b') }} {{ l.count('a') }} {{ (1,2).index(2) }} {{ l.copy() }}
{{ l.index('zz') }}
{{ s.nope() }}
{{ s.upper(1) }}
{{ s() }}
{{ 1() }}
{{ none() }}
{{ d.a() }}
{{ cycler('a','b').next() }} {% set c = cycler('a','b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{% set j = joiner('-') %}{{ j() }}{{ j() }}{{ j() }}
{{ cycler() }}
{{ strftime_now('%Y') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%B %d, %Y %%') }} {{ strftime_now('') }} {{ strftime_now('%A') }}
{{ strftime_now(1) }}
{{ strftime_now() }}
{{ (1, 2)[0] }} {{ ()|length }} {{ (1) }} {{ (1,)|length }} {{ 1, 2 }} {{ 1, }}
{{ l[0, 1] }}|
{{ d.a.b.c }}
{{ d.nested.k }} {{ d.nested['k'] }} {{ d['nested'].k }} {{ l.0 }} {{ d.nested.list.0 }} {{ d.nested.list[1].z }}
{{ d['items'] is callable }} {{ shadow.items is callable }} {{ shadow['items'] }}
{{ 9223372036854775807 }} {{ -9223372036854775807 - 1 }}
{{ 1.0 == 1 }} {{ 0.1 + 0.2 }} {{ 1e300 * 1e10 }} {{ 3.0 // 2 }} {{ 3.0 % 2 }} {{ 1.5 + 1 }} {{ 10 / 5 }} {{ 2 ** 0.5 }} {{ -0.0 }} {{ 0.0 == -0.0 }}
{{ messages }}
{{ tools }} {{ documents }} {{ add_generation_prompt }} {{ bos_token }} {{ eos_token }} {{ pad_token }}|
{{ {'a': 1}.a }} {{ [1,2].0 }} {{ 'abc'.0 }} {{ {'a': {'b': 1}}['a']['b'] }} {{ [[1]][0][0] }}
{{ "x" if "a" in l and "zz" not in l else "y" }}
{{ 1 if l and l[0] == 'a' }}
{{ d == {'a': 1} }} {{ l == ['a','b','c'] }} {{ 1 != 2 }} {{ [1, [2]] == [1, [2.0]] }}
{% for x1 in l %}{{ x1 }}{{ ", " if not loop.last }}{% endfor %}
{% for x1 in l|reverse %}{{ x1 }}{{ loop.length }}{% endfor %}
{% for m in l %}{% set outer_loop = loop %}{% for n in l %}{{ outer_loop.index }}{{ loop.index }} {% endfor %}{% endfor %}
{{ x is not defined }} {{ x is not none }} {{ not x is none }} {{ d is not mapping }}
{% if x is defined and x is not none %}a{% else %}b{% endif %}
{% if not (x is defined) or d.a == 1 %}a{% endif %}
{{ l | map('upper') | join(', ') }} {{ l|length > 2 }} {{ l | first | upper }}
{{ (l | length) + 1 }} {{ l|length + 1 }}
{{ 'a;b'.split(';')[0] }} {{ 'a;b'.split(';')[-1]|upper }} {{ ('a' ~ 'b').upper() }} {{ "%.3f"|format(3.14159) }} {{ '%s=%s' % ('a', 1) }}
{{ [1]|selectattr|list }}
{{ x|reverse|list }}
{% print 1, 2 %}{% print s %}
{{ ['b', 'a', 'C']|sort|join(',') }} {{ {'z': 1, 'y': [3, 2]}|dictsort|tojson }}
{% set ns = namespace(found=false) %}{% for i in l %}{% if i == 'b' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}
{% set items = namespace(value=[]) %}{% for i in l %}{% set items.value = items.value + [i|upper] %}{% endfor %}{{ items.value }}
{% for i in l recursive %}{{ i }}{% endfor %}
{% for i in l if i != 'b' recursive %}{{ i }}{{ loop.index }}{% endfor %}
{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d.nested|dictsort %}{{ k }}={{ v }};{% endfor %}
{{ 5|items|list }}
{{ l[-1:][0] }} {{ l[1:]|join }} {{ (l + ['d'])[-2:] }} {{ s[:5] ~ s[-5:] }}
{{ s.split(' ')|map('capitalize')|join(' ') }} {{ s|replace('o', '0')|upper }}
{{ '%s' % none }} {{ '%s' % true }} {{ '%r' % [none, 1.5] }} {{ '%5.1f|%-8s|' % (2.25, 'é') }} {{ '%s' % d }} {{ '%i' % 3.9 }} {{ '%+.2e' % 0.00123 }} {{ '%#x %o' % (255, 8) }}
{{ '{:>10}'.format('é世') }} {{ '{:^7}'.format(5) }} {{ '{:.3}'.format('abcdef') }} {{ '{:.3}'.format(2.0) }} {{ '{:g}'.format(1e10) }} {{ '{:e}'.format(1.5) }} {{ '{:010.3f}'.format(-3.14159) }} {{ '{:=+8d}'.format(42) }} {{ '{:,.2f}'.format(1234567.891) }} {{ '{!s:>4}'.format(1) }}
{{ '{:d}'.format('a') }}
{{ '{:s}'.format(1) }}
{{ '{:{w}}|'.format('a', w=5) }}
{{ '{a}'.format_map({'a': 1}) }}
{{ '{0.__class__}'.format(1) }}
{{ '{0.__class__.__mro__}'.format(1) }}
{{ d.__init__ }}|{{ l.__len__ }}|{{ s._private }}|{{ none.__class__ }}|{{ (1).__class__ }}|{{ range.__globals__ }}|{{ namespace.__class__ }}
{{ namespace().__class__.__bases__ }}
{{ dict.__subclasses__() }}
{{ d.setdefault('q', 1) }}
{{ l.extend([1]) }}
{{ l.insert(0, 1) }}
{{ d.clear() }}
{{ (l|map('upper')).gi_frame }}|
{% macro m() %}{{ loop }}{% endmacro %}{{ m() }}|
{% set f = s.upper %}{{ f() }} {% set g = d.get %}{{ g('a') }}{{ g('q') }}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}b{% endmacro %}{{ a() }}
{% if true %}{% macro c() %}c{% endmacro %}{% endif %}{{ c() }}
{% set t = (1, 'a') %}{{ t }}{{ t[0] }}{{ t|length }}{{ t == (1, 'a') }}{{ t + (2,) }}
{{ 1 in (1, 2) and 'a' in d }} {{ 'nested' in d }} {{ 'zz' in d.keys() }} {{ 1 in d.values() }} {{ ('a', 1) in d.items() }}
{{ messages[0].role }} {{ messages[0]['content'] }} {{ messages|length }} {{ messages[-1].role == 'user' }} {{ messages[0].missing }}| {{ messages[1] }}|
{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list }}
{{ messages|selectattr('role', 'in', ['user', 'system'])|list|length }}
{{ messages|map(attribute='role')|unique|join }}
{{ u|length }} {{ u[1:3] }} {{ u[-1] }} {{ u.upper() }} {{ u|tojson }} {{ u.find('世') }} {{ u.split(' ') }} {{ u|list }} {{ u.center(20, '·') }}
{{ 'e\u0301'|length }} {{ '\U0001F600'|length }} {{ 'a\u00a0b'.split() }} {{ '\u2003x\u2003'|trim }}
{{ 'ﬀ ŉ ǰ ΐ'.upper() }} {{ 'ΌΔΟΣ ΌΔΟΣ.'.lower() }} {{ 'ǅ'.lower() }} {{ 'ÿ'.upper() }} {{ 'ı'.upper() }} {{ 'K'.lower() }} {{ 'ᾳ'.title() }}
{{ 'ＡＢＣ'.lower() }} {{ 'привет мир'|title }} {{ 'ПРИВЕТ'|capitalize }} {{ 'გამარჯობა'.upper() }}
{{ 1.0|string }} {{ 100|float }} {{ 1e22 }}
{{ 0.1|tojson }} {{ 1e-7|tojson }} {{ 123456789.123|tojson }} {{ -0.0|tojson }}
{{ 3 * 'ab' ~ 'c' }} {{ 'a' * 2 + 'b' }} {{ 10 - 2 - 3 }} {{ 2 * 3 % 4 }} {{ 100 // 7 // 2 }} {{ 5 % 3 * 2 }}
{{ 1 if x else 2 if y else 3 }} {{ (1 if true else 2) + 1 }} {{ 'a' if l else 'b' ~ 'c' }} {{ [1 if true else 2, 3] }}
{{ {'a': 1 if true}.a }} {{ {'a': x}.a is defined }} {{ [x] }} {{ [x]|length }} {{ {'k': x} }}
{{ x is defined or y is defined }} {{ x is undefined and true }} {{ (x or y) is defined }}
{{ l is iterable and l is not string and l is not mapping }} {{ d is mapping }} {{ d is iterable }} {{ 5 is iterable }} {{ s is sequence }} {{ d.items() is sequence }} {{ range(2) is sequence }} {{ (l|select) is iterable }} {{ (l|select) is sequence }}
{{ d is sameas d }} {{ none is sameas none }} {{ 1 is sameas true }} {{ true is sameas true }}
{{ 3 is divisibleby 0 }}
{{ none is odd }}
{{ x is odd }}
{{ x is gt 1 }}
{{ 1 is defined() }}
{{ 1 is divisibleby }}
{{ 1|default(2, 3, 4) }}
{{ 1|default(nope=2) }}
{{ 'a'|upper(1) }}
{{ 'a'|replace }}
{{ l|join(attribute='nope') }}|
{{ l|map(attribute='a.b')|list }}
{{ [d]|map(attribute='nested.list.1.z')|list }} {{ [d]|map(attribute='nested.q.z', default='-')|list }}
{{ l|batch(0)|list }}
{{ l|slice(0)|list }}
{{ l|first|first|first }} {{ []|first|default('none') }} {{ l|last|upper }} {{ (l|map('upper'))|last }}
{{ range(3)|map('string')|join(',') }} {{ range(3)|sum }} {{ range(3)|last }} {{ range(10)[2:5] is defined }}
{{ range(3)|reverse|list }} {{ d|reverse|list }} {{ d|last }} {{ d.keys()|last }}
{{ 'a' < 'B' }} {{ 'é' > 'z' }} {{ '🎉' > '\uffff' }} {{ [] < [1] }} {{ (1, 'a') < (1, 'b') }} {{ true < 2 }}
{{ 1 < x }}
{{ [1, 2] < [1, 'a'] }}
{{ none == x }} {{ none in [none] }} {{ x == none }} {{ '' == x }} {{ [] == [] }} {{ {} == {} }} {{ {'a': [1]} == {'a': [1]} }} {{ 'a' == ['a'] }} {{ range(3) == range(0, 3) }} {{ range(0) == range(5, 5) }}
{{ 'a' != 'a' }} {{ not 'a' == 'b' }} {{ not ('a' == 'a') }} {{ 1 == 1 == 1 }} {{ 1 < 2 == true }}
{% set x = 5 %}{{ x }}{% set x = x + 1 %}{{ x }}{% if x > 5 %}{% set x = 'new' %}{% endif %}{{ x }}
{% for i in range(3) %}{% set y = i %}{% endfor %}{{ y is defined }}
{% set y = 0 %}{% for i in range(3) %}{% if i == 1 %}{% set y = i %}{% endif %}{{ y }}{% endfor %}{{ y }}
{% macro m(x) %}{% set x = x + 1 %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m(5) }}{{ x }}
{% macro m(caller) %}{{ caller }}{% endmacro %}{{ m(1) }}
{% macro outer() %}{% call inner() %}{{ caller is defined }}{% endcall %}{% endmacro %}{% macro inner() %}<{{ caller() }}>{% endmacro %}{{ outer() }}
{% call s.upper() %}{% endcall %}
{% macro m() %}{% for i in l %}{{ i }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}{% endmacro %}{{ m() }}
{% set v %}{% for i in l %}{% if i == 'b' %}{% continue %}{% endif %}{{ i }}{% endfor %}{% endset %}{{ v }}{{ v is string }}
{% for i in l %}{% filter upper %}{{ i }}{% if i == 'b' %}{% break %}{% endif %}{% endfilter %}{% endfor %}
{% for i in l %}{{ loop.nextitem if loop.nextitem is defined else '-' }}{{ loop.previtem|default('^') }}{% endfor %}
{% for i in l %}{% for j in l %}{% if loop.first %}{{ loop.length }}{% endif %}{% endfor %}{% endfor %}
{% for c in s if c in 'aeiou' %}{{ c }}{{ '' if loop.last else ',' }}{% endfor %}
{% for i in range(1, 4) %}{{ i }}{% else %}never{% endfor %}{% for i in [] %}{% else %}empty{% endfor %}{% for i in l if false %}{% else %}filtered{% endfor %}
{% with %}{% set inner = 1 %}{{ inner }}{% endwith %}{{ inner is defined }}
{% with a, b = 1, 2 %}{% endwith %}
{% filter trim %}  x  {% endfilter %}|{% filter indent(2) %}a{{ '\n' }}b{% endfilter %}|{% filter default('z') %}{% endfilter %}|
{% set a = [] %}{% set a = a + [1] %}{% set a = a + [2] %}{{ a }} {% set dd = dict(d, z=1) %}{{ dd.z }}{{ d.z is defined }}
{{ tools is none }} {{ tools is defined }} {{ documents is none }} {{ add_generation_prompt }} {{ bos_token }}{{ eos_token }}
{{ raise_exception() }}
{{ raise_exception('a', 'b') }}
{{ raise_exception(5) }}
{% if false %}{{ raise_exception('never') }}{% endif %}fine
{{ cycler(1, 2).nope }}| {{ joiner()() }}|
{{ namespace(a=1).b is defined }} {{ namespace(d).a }} {{ namespace([('q', 2)]).q }}
{{ namespace(1) }}
{{ dict(d, a=2).a }} {{ dict(d) == d }} {{ dict([['k', 'v']]).k }}
{{ dict([[1, 2, 3]]) }}
{{ dict(x=1)['x'] }} {{ dict(**d).a }}
{{ m(**5) }}
{{ m(*5) }}
{{ dict(**{1: 2}) }}
{{ s.replace('o', '') }} {{ s.split('o', -1) }} {{ s.count('o', 5) }} {{ s.startswith('world', 6) }} {{ s.find('o', 5, 7) }} {{ s.rindex('o') }}
{{ s.strip('hd') }} {{ s.lstrip('leh') }} {{ s.rstrip('dlr') }} {{ s.strip('') }} {{ s.strip(none) }}
{{ s.strip(1) }}
{{ s.upper().lower().title().swapcase() }}
{{ 'a,b'.split(',')|last }} {{ 'k=v'.split('=', 1)[1] }} {{ 'a b c'.rsplit(none, 1)[0] }} {{ 'x'.join('abc') }}
{{ 'true' in ['true'] }} {{ true in [1] }} {{ '1' in [1] }} {{ 1.0 in [1] }}
{{ "it's" ~ 'a "q"' }} {{ ["it's"] }} {{ ['a "q"'] }} {{ ["it's \"q\""] }}
{{ '\\n' }} {{ '\\' }} {{ '\/' }} {{ '\d' }} {{ '\u00e9\U0001F600\t|' }}
{{ '\x4' }}
{{ '\u12' }}
{{ '\U00110000' }}
{{ 1__0 }}
{{ 1.}}
{{ 1.5.5 }}
{{ .5 }}
{{ 1e }}
{{ a.1b }}
{{ 0_0 }} {{ 00 }} {{ 0XfF }} {{ 1_2_3 }}
{{ foo bar }}
{{ foo.}}
{{ foo..bar }}
{{ foo[}}
{{ foo[] }}|
{{ | upper }}
{{ 'a' | }}
{{ 'a' || upper }}
{{ 'a' is }}
{{ not }}
{{ a if }}
{{ a if b else }}
{{ a in }}
{{ a not b }}
{{ == 1 }}
{{ a = 1 }}
{{ a; b }}
{{ {'a': 1,, } }}
{{ [1,,2] }}
{{ (,) }}
{{ [1 2] }}
{{ ] }}
{{ (] }}
{{ f(,) }}
{{ f(a b) }}
{{ f(**a, b) }}
{{ f(*a, *b) }}
{% set %}{% endset %}
{% set a %}
{% set a b = 1 %}
{% set a = %}
{% for i %}{% endfor %}
{% for i in %}{% endfor %}
{% for 1 in l %}{% endfor %}
{% for i in l %}{% else %}{% else %}{% endfor %}
{% if a %}{% else %}{% elif b %}{% endif %}
{% elif a %}
{% macro %}{% endmacro %}
{% macro m %}{% endmacro %}
{% macro m( %}{% endmacro %}
{% macro m(a, a=1) %}{{ a }}{% endmacro %}
{% macro m(1) %}{% endmacro %}
{% call %}{% endcall %}
{% filter %}{% endfilter %}
{% filter nope %}{% endfilter %}
{% with a %}{% endwith %}
{% endfor %}
{% raw %}{% endraw
{% continue %}
{% if true %}{% break %}{% endif %}
{% generation %}a
{% endgeneration %}
{%%}
{%-%}
{% 1 %}
{%if true%}a{%endif%}{%-if true-%} b {%-endif-%} c
{%   for   i   in   l   %}{{i}}{%   endfor   %}
{{s}}{{-s-}}{{ s}}
{% if l | length > 2 and l[0] == 'a' or false %}yes{% endif %}
{% if l is defined and l %}y{% endif %}{% if not l %}n{% elif s %}e{% endif %}
{% if d.nested.k == 'v' and 'k' in d.nested and d.get('nested').get('k') %}y{% endif %}
{% set m = messages[0] %}{{ m.role ~ ': ' ~ m.content }}{% set m2 = dict(m, content='new') %}{{ m2.content }}{{ m.content }}
{{ '<|' + messages[0]['role'] + '|>' + '\n' + messages[0]['content'] | trim + '<|end|>' }}
{{ (messages[0]['role'] | upper) + ':' }} {{ messages[0]['role']|upper + ':' }}
{% set s2 = s %}{% set s2 = s2[:3] if s2|length > 3 else s2 %}{{ s2 }}
{{ 'a\nb'.split('\n') }} {{ 'a\nb' | replace('\n', ' ') }} {{ 'a\n\nb'.split('\n\n')|length }}
{% for line in 'a\nb\n'.split('\n') %}[{{ line }}]{% endfor %}
{{ 'x' if messages|length == 1 else 'y' }} {{ loop is defined }}
{{ d.nested.list[1]['z'] + 1 }} {{ d.nested.list[-1].z }} {{ d['nested']['list'][0] }}
{{ d|string }} {{ l|string }} {{ d ~ l }} {{ (1, 2) ~ none }}
{{ d | tojson(indent=2) }} {{ d|tojson|length }} {{ d | tojson | safe }} {{ [d]|tojson(indent=1) }}
{{ d|tojson(2) }}
{{ d|tojson(indent=none) }} {{ d|tojson(indent=-1) }} {{ d|tojson(indent=true) }}
{{ d|tojson(indent='ab') }}
{{ d|tojson(nope=1) }}
{{ l|tojson(separators=1) }}
{{ s|list|sort|join }} {{ [3, 1.5, true]|sort }} {{ [[2], [1, 5]]|sort }} {{ [none, 1]|sort is defined if false }}
{{ [none, 1]|sort }}
{{ [d, d]|sort }}
{{ ['b', 'B', 'a']|sort|list }} {{ ['b', 'B', 'a']|unique|list }} {{ ['B', 'b']|max }} {{ ['x', 'Y']|min(case_sensitive=true) }}
{{ [1, 2, 3, 4]|select('divisibleby', 2)|list }} {{ ['a', '', none, 0]|select|list }} {{ ['a', '']|reject('equalto', '')|list }}
{{ l|select('nope')|list }}
{{ []|select('nope')|list }}
{{ l|groupby('nope')|list }}
{{ [{'t': 'b'}, {'t': 'A'}, {'t': 'a'}]|groupby('t') }} {{ [{'t': 'b'}, {}]|groupby('t', default='zz') }}
{{ [{'t': 'b'}, {'t': 'A'}, {'t': 'a'}]|groupby('t', case_sensitive=true)|map('first')|list }}
"""

MULTILINE = [
    '{{ "a\\\nb" }}',
    "{{ 'multi\nline' }}",
    "{%+ if true %} a{% endif +%}\nx",
    "{% if true %}\n{% endif %}\n",
    "{% endif %}",
    "a\n  {% if true %}  \n   c\n  {% endif %}  \nd\n  {# comment #}\ne {% if true %} f {% endif %}\n  {{ 1 }}\n",
    "{%- if true %}\nx\n{%- endif %}\n\ny\n\n",
    "{{- 'a' -}}\n\n   b",
    "  {%- set content = ' x ' -%}\n [{{ content | trim }}]\n",
    "a\r\nb\rc\n",
    "\n\n{% set a = 1 %}\n\n  {% set b = 2 %} \n{{ a }}{{ b }}\n",
    "  {% raw %}\n  {{ x }}\n  {% endraw %}\ny",
    "{% raw -%}\n a {%+ endraw %}\n b",
    "  \t{#- c -#}  \n  x {#+ d +#}\ny",
    "\u3000{%- if true -%}\u3000x\u2028{%- endif %}",
    "{% macro m() %}\n  x\n{% endmacro %}\n[{{ m() }}]",
    "{% for i in [1, 2] -%}\n  {{ i }}\n{%- endfor %}\n",
    "{% for i in [1, 2] %}\n  {{ i }}\n{% endfor %}\nend",
    "{{ {\n  'a': 1,\n  'b': [\n 2,],\n} }}",
    "{% set x %}\n  a\n{% endset %}\n[{{ x }}]",
    "{{ '}}' }}{{ '%}' }}{% if '%}' %}y{% endif %}",
    "{ {% if true %}{a}{% endif %} }} %} #}",
    "{{ 1 }\n}",
    "x{{",
    "x{%",
    "x{#",
    "{",
    "",
    "\n",
    "{% if true %}a{% endif %}\n\n\n",
    "{{ s }}\n",
]

TEMPLATES = [line for line in LINES.split("\n") if line] + MULTILINE
