"What a cell shows"
import json
import os

from .. import _message

__all__ = ['clear', 'disable_custom_widget_manager', 'enable_custom_widget_manager', 'eval_js']


def eval_js(script, ignore_result=False, timeout_sec=None):
    "Run JavaScript in the browser: without a time limit it waits for ever if there is no browser"
    answer = _message.answer('JS')
    known = answer in ('ok', 'hang', 'message_error', 'attribute_error')
    if answer == 'hang' and timeout_sec is not None: answer = 'no_answer'
    if ignore_result and answer != 'attribute_error': answer = 'ok'
    _message.blocking_request('cell_javascript_eval', {'script': script}, timeout_sec=timeout_sec, answer=answer)
    return None if known or ignore_result else json.loads(os.environ['FAKE_COLAB_JS'])


def clear(wait=False, output_tags=()):
    "Clear the cell's output"
    if _message.in_kernel():
        from IPython.display import clear_output
        clear_output(wait)


def enable_custom_widget_manager(version='5.0.0a'):
    "Let the page load widgets from a CDN"
    if version != '5.0.0a': raise ValueError(f'Unknown widgets version: {version}')


def disable_custom_widget_manager(): "No widgets from a CDN"
