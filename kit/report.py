"""The words of the report, a Jinja template: rendered twice, once as Markdown, once as HTML."""

# ruff: noqa: E501

TEMPLATE = """\
{#- compare.py renders this twice: h, p, table and figure write Markdown or HTML. -#}
{% if page %}
<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ dataset }}</title><link rel="icon" href="data:,">
<style>
body { font: 16px/1.5 sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
img { max-width: 100% } div { overflow-x: auto }
table { border-collapse: collapse; font-size: 12px } td, th { border: 1px solid #ccc; padding: .2rem .4rem; text-align: left }
</style>
{% endif %}
{{ h("Text to image by ablation: " ~ dataset, 1) }}

{% if missing %}{{ p("Missing here: " ~ missing | join(", ") ~ ".") }}

{% endif %}
{% if apart %}{{ p("With other settings, or a seed that is there already, so in no table: " ~ apart | join(", ") ~ ".") }}

{% endif %}
{{ h("What was compared", 2) }}

{{ table(settings) }}

{{ p("Classes (" ~ classes | length ~ "): " ~ classes[:26] | join(", ") ~ (" and " ~ (classes | length - 26) ~ " more" if classes | length > 26 else "") ~ ".") }}

{{ h("How to read the numbers", 2) }}

{{ p(fid ~ ": how far the features of the images are from those of " ~ "%d" % real.reference[0] ~ " real images (Fréchet distance); less is better. " ~ "%d" % real.n[0] ~ " other real images score " ~ write(real.fid) ~ ", noise scores " ~ write(noise.fid) ~ ": a model's number means something between these two, and only beside numbers of the same extractor and n." ~ (" The features are those of the small CLIP of this data set (tiny_clip), this FID is 1000 times that of its embeddings: not to be compared with FIDs of Inception." if real.extractor[0] == "tiny_clip" else "")) }}

{{ p("The reference, the real images that calibrate, and what the models and tiny CLIP were trained on are one data set: a model that repeats its training images would score well, and the row of real images is a little flattered.") }}

{{ p("Precision and coverage are read from the same features. Precision: the share of images that lie among the real ones. It is easily fooled: noise scores " ~ write(noise.precision, "{:.0%}") ~ ", so never read it alone. Coverage: the share of real images that have a drawn one near them (real images: " ~ write(real.coverage, "{:.0%}") ~ ", noise: " ~ write(noise.coverage, "{:.0%}") ~ "); it falls with fewer images.") }}

{{ p("Diversity: how much two images of a class differ, as a share of what real ones do; a model that repeats one image scores 0 %, and noise, which differs more than any drawing, over 100 %. Images of a model that is asked for nothing are sorted by the class that is read in them. More sampling steps raise it, guidance lowers it. CLIP similarity: the cosine of an image and its prompt, as the CLIP named " ~ real.text_encoder[0] ~ " reads both (real images: " ~ write(real.clip_similarity, "{:.2f}") ~ "); beside it the same with prompts of other classes. Accuracy: the share that tiny CLIP reads as what was asked for (real images: " ~ write(real.accuracy, "{:.1%}") ~ ", noise: " ~ write(noise.accuracy, "{:.0%}") ~ "). New phrasings: accuracy for prompts that no model was trained on, drawn at one scale only. ± is the standard deviation over the seeds; models with one seed have none, so a difference of a few tenths between two of them may be chance. Speed is that of the first seed, on its device.") }}

{{ h("Side by side", 2) }}

{{ p("Real images on top; below, the first images of each model's first seed. Every model was asked for the class over the column, except one that is asked for nothing.") }}

{{ figure("grid") }}

{{ h("GAN against diffusion", 2) }}

{{ table(comparison) }}

{{ h("Ablation: one idea at a time", 2) }}

{{ table(ablation) }}

{{ h("Training", 2) }}

{{ p("Faint: means of 20 steps as they were logged; bold: smoothed over 15 of them. First seed. The diffusion losses are comparable with one another, a GAN's two losses show only which network is ahead.") }}

{{ figure("loss") }}

{{ h("Speed against quality", 2) }}

{{ figure("speed") }}

{% if verdicts %}
{{ h("What the guidance scale does", 2) }}

{% for sentence in verdicts %}
{{ p(sentence) }}

{% endfor %}
{{ p("Best means best of the scales that were drawn, whatever the spread. Similarity and accuracy above those of real images are no sign of quality: guidance makes images fit the text better than real ones do.") }}

{{ figure("scale") }}

{% for model in guided %}
{{ p(model ~ ": the same prompt and the same noise in every column, a guidance scale in every row.") }}

{{ figure(model) }}

{% endfor %}
{% endif %}
{% if steps %}
{{ h("Sampling steps against quality", 2) }}

{{ p("a4_full, one seed, trained once, drawn in different numbers of steps; the tables above use " ~ (settings | selectattr("script", "equalto", "a4_full") | first).sample_steps ~ ".") }}

{{ figure("steps") }}

{% endif %}
"""
