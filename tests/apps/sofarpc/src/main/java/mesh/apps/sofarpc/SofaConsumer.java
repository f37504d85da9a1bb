package mesh.apps.sofarpc;

import com.alipay.sofa.rpc.api.GenericService;
import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ConsumerConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.context.RpcInvokeContext;
import com.alipay.sofa.rpc.core.exception.SofaRpcException;
import com.alipay.sofa.rpc.core.invoke.SofaResponseCallback;
import com.alipay.sofa.rpc.core.request.RequestBase;
import com.alipay.sofa.rpc.message.ResponseFuture;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import mesh.apps.Console;
import mesh.apps.Consumer;
import mesh.apps.Flags;
import mesh.apps.Shop;

/** A SOFARPC consumer: {@code --to host:port, --mesh http://sidecar:13330} or {@code --nacos host:port}; {@code --unique-id}. */
public final class SofaConsumer extends Consumer {
    private static final int TIMEOUT_MILLIS = 20_000;

    private final Flags flags;
    private final SofaShop shop;
    private final SofaShop oneWay;

    private SofaConsumer(Flags flags) {
        this.flags = flags;
        shop = config(SofaShop.class, "sync").refer();
        oneWay = config(SofaShop.class, "oneway").refer();
        SofaShop future = config(SofaShop.class, "future").refer();
        SofaShop callback = config(SofaShop.class, "callback").refer();
        GenericService generic =
                config(GenericService.class, "sync").setGeneric(true).refer();

        cases.put("runtime-exception", () -> {
            try {
                shop.crash("boom");
            } catch (IllegalStateException e) {
                return same("boom", e.getMessage());
            }
            throw new AssertionError("no exception");
        });
        cases.put("future", () -> {
            future.echo("later");
            ResponseFuture<String> answer = RpcInvokeContext.getContext().getFuture();
            return same("later", answer.get(10, TimeUnit.SECONDS));
        });
        cases.put("callback", () -> {
            CompletableFuture<Object> answer = new CompletableFuture<>();
            RpcInvokeContext.getContext().setResponseCallback(new Complete(answer));
            try {
                callback.echo("called back");
            } finally {
                RpcInvokeContext.getContext().setResponseCallback(null);
            }
            return (String) same("called back", answer.get(10, TimeUnit.SECONDS));
        });
        SofaShop other = config(SofaShop.class, "sync").setUniqueId("nowhere").refer();
        cases.put("other-version", () -> {
            try {
                other.who();
            } catch (SofaRpcException e) {
                return describe(e);
            }
            throw new AssertionError("no exception");
        });
        cases.put("generic", () -> {
            Object answer = generic.$invoke("echo", new String[] {"java.lang.String"}, new Object[] {"generic"});
            return (String) same("generic", answer);
        });
    }

    /** Hands an answer that SOFARPC calls back with to a future. */
    private record Complete(CompletableFuture<Object> answer) implements SofaResponseCallback<Object> {
        @Override
        public void onAppResponse(Object value, String methodName, RequestBase request) {
            answer.complete(value);
        }

        @Override
        public void onAppException(Throwable failure, String methodName, RequestBase request) {
            answer.completeExceptionally(failure);
        }

        @Override
        public void onSofaException(SofaRpcException failure, String methodName, RequestBase request) {
            answer.completeExceptionally(failure);
        }
    }

    /** Short times to connect would make a busy machine look like a broken mesh. */
    private <T> ConsumerConfig<T> config(Class<T> type, String invokeType) {
        ConsumerConfig<T> config = new ConsumerConfig<T>()
                .setApplication(new ApplicationConfig().setAppName("sofa-consumer"))
                .setInterfaceId(SofaShop.class.getName())
                .setInvokeType(invokeType)
                .setTimeout(TIMEOUT_MILLIS)
                .setConnectTimeout(5_000)
                .setReconnectPeriod(2_000)
                .setRetries(0)
                .setRepeatedReferLimit(-1);
        String uniqueId = flags.get("unique-id", null);
        if (uniqueId != null) {
            config.setUniqueId(uniqueId);
        }
        String nacos = flags.get("nacos", null);
        String mesh = flags.get("mesh", null);
        if (mesh != null) {
            config.setRegistry(new RegistryConfig().setProtocol("mesh").setAddress(mesh));
        } else if (nacos != null) {
            config.setRegistry(new RegistryConfig().setProtocol("nacos").setAddress(nacos));
        } else {
            config.setDirectUrl("bolt://" + flags.require("to"));
        }
        return config;
    }

    @Override
    protected Shop shop() {
        return shop;
    }

    @Override
    protected Headers headers(Map<String, String> send) {
        try {
            RpcInvokeContext.getContext().putAllRequestBaggage(send);
            Map<String, String> received = shop.headers();
            return new Headers(
                    received, new HashMap<>(RpcInvokeContext.getContext().getAllResponseBaggage()));
        } finally {
            RpcInvokeContext.removeContext();
        }
    }

    @Override
    protected String label(String method, Map<String, String> headers, int timeoutMillis) {
        try {
            RpcInvokeContext.getContext().putAllRequestBaggage(headers);
            RpcInvokeContext.getContext().setTimeout(timeoutMillis);
            return switch (method) {
                case "who" -> shop.who();
                case "audit" -> shop.audit();
                default -> shop.slow(Integer.parseInt(method.substring("slow".length())));
            };
        } finally {
            RpcInvokeContext.removeContext();
        }
    }

    @Override
    protected void notice(String id) {
        oneWay.notice(id);
    }

    public static void main(String[] args) {
        Console console = new Console();
        new SofaConsumer(new Flags(args)).serve(console);
    }
}
